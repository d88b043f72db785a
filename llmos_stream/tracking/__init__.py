"""A federation's log for tools that people know: experiment trackers and data frames. See `docs/tracking.md`."""
