"""Where the master keeps what must survive it. `base.py` is the contract; each back end is a file."""
