"""Control groups, version 1, hybrid or 2: `hierarchy.py` says which, `isolator.py` is the isolator."""
