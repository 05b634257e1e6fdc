"""Virtual addresses in the kernel. `ruleset.py` says which rules a table of VIPs means; each back end installs them."""
