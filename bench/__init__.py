"""What we claim in numbers, measured beside what others need for the same. Each module has `run() -> Report`."""
