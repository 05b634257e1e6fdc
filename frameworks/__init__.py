"""Frameworks decide what should run. They see the cluster through the master's offer contract and nothing else."""
