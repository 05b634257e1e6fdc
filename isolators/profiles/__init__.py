"""Seccomp profiles as data, in Docker's format, and `docker.py`, which reads that format.

`default.json` allows what Docker's own default allows, less `socketcall`, socket families without a use in a container
(among them AF_ALG, CVE-2026-31431, and AF_VSOCK, which reaches the hypervisor), pairs of sockets other than AF_UNIX,
and the x32 system calls.
"""
