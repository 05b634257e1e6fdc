"""What may reach whom: policies between containers, published ports, and what comes from outside or is forged."""
