"""Long-running services, defined as Marathon apps: N instances of each are kept running."""
