"""The in-process broker."""

from llmos_stream.broker.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
