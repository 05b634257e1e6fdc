"""The nouns of Tepui: frozen dataclasses and pure functions, no I/O. Every other package may import this one."""
