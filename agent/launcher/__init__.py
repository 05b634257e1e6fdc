"""The small process that forks containers, because a threaded daemon must not.

`client.py`, `entry.py`, `descriptors.py` and `adopt.py` run in the agent. Everything else runs in the launcher's own
process, and imports the standard library and this folder only. The path of one container: `server.py` -> `keeper.py` ->
`maker.py` -> `init.py`; that of a command in one that runs: `server.py` -> `guard.py` -> `enter.py`.
"""
