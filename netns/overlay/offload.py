"""Checksums of what goes through a VXLAN device: computed by the network card or before it (linux/ethtool.h).

Some cards and drivers get the checksum of a packet within a packet wrong, above all of one whose address was
translated: then small things like `ping` pass the overlay and connections hang, and nobody counts what is lost. No
kernel tells which cards do, so whoever runs them says so, and then the node computes them itself: a VXLAN device
without this offload hands on packets that are complete.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from netns.driver import NetworkError

# linux/sockios.h, linux/ethtool.h
SIOCETHTOOL = 0x8946
ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM = 0x16, 0x17
VALUE = struct.Struct("=II")  # struct ethtool_value
IFREQ = struct.Struct("16sP16x")  # struct ifreq with a pointer to it


def reconcile_offload(dev: str, wanted: bool) -> list[str]:
    """Of a link in the network namespace of the calling thread. Returns what was done, in words."""
    if _ethtool(dev, ETHTOOL_GTXCSUM) == wanted:
        return []
    _ethtool(dev, ETHTOOL_STXCSUM, wanted)
    return [f"switch {'on' if wanted else 'off'} checksum offload of {dev}"]


def _ethtool(dev: str, command: int, value: bool = False) -> bool:
    answer = ctypes.create_string_buffer(VALUE.pack(command, value), VALUE.size)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            fcntl.ioctl(asking, SIOCETHTOOL, IFREQ.pack(dev.encode(), ctypes.addressof(answer)))
    except OSError as error:
        raise NetworkError(f"checksum offload of {dev}: {os.strerror(error.errno or errno.EIO)}") from error
    return bool(VALUE.unpack(answer.raw)[1])
