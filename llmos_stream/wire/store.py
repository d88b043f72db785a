"""Where the payload of a message is kept while it comes in, and until it is done with.

The Assembler is given a factory of stores, so that this room does no I/O: `MemoryStore` keeps views of the
records; a role may keep the bytes elsewhere.
"""

from collections.abc import Iterator
from typing import Protocol

from llmos_stream.types import Part


class Parts(Protocol):
    """The parts of a payload. They can be walked any number of times; `close` gives back what holds them.

    A caller need not close: what is no longer referred to is given back too. It pays where that takes a while.
    """

    def __iter__(self) -> Iterator[Part]: ...

    def close(self) -> None: ...


class Store(Parts, Protocol):
    """Parts that grow. Used by one thread at a time."""

    def append(self, part: memoryview, /) -> None:
        """Keep `part`, never empty, behind the others. It may be kept as it is: nobody may change what it shows."""
        ...


class MemoryStore(list[memoryview]):
    """The parts themselves: a list of views of the records."""

    def close(self) -> None:
        self.clear()
