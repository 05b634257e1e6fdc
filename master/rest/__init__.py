"""The master's REST interface: what all routers share. The routers themselves belong to the frameworks and the CLI."""
