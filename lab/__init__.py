"""A whole cluster on one machine: each node in namespaces, a cgroup subtree and a state directory of its own.

Nodes are joined by a bridge in a network namespace that belongs to the lab; there is no route out of it.
"""
