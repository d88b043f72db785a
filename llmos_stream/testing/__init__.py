"""For tests of what is built on this package: time that stands until it is told to pass."""

from llmos_stream.testing.clock import ManualClock

__all__ = ["ManualClock"]
