"""The in-process broker."""
