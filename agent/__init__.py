"""The daemon on a node: makes the node look like the desired state it was sent, and says what it observes."""
