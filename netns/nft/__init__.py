"""nftables and what belongs to it in the kernel: the library, its listings, and two netlink requests."""
