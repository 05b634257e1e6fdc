"""Names (DNS) on a node: `client.py` is the agent's side, `process.py` what answers, `zone.py` which there are."""
