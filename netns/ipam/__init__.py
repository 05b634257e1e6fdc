"""Which container has which address of the node's blocks."""
