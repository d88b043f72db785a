"""The roles: one loop each, composed from the rooms below. Import each from its own module or folder."""
