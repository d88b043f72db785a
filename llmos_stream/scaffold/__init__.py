"""A project that runs at once: a task, its settings, sample data and a test, from a template."""
