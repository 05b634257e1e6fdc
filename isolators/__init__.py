"""One kind of limit on a container a file. `base.py` is the contract. All of it works without a cluster."""
