"""Changes to the kernel's iptables (legacy) tables, made through python-iptables in a process of its own.

`rule.py` is what a rule is, `client.py` is what others call. The rest runs in the worker: `worker.py` serves requests
one by one, `tables.py` compares and changes chains, `entry.py` turns rules into the kernel's own form.
"""
