"""What every reader does alike: where it starts, which partitions are its own, and how far it is behind."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Unpack

from llmos_stream.broker.ports import ReaderOptions, TopicPartition


class BaseReader(ABC):
    """The public half of a reader, over the few primitives that an implementation gives.

    Raises ValueError for one that makes no sense.
    """

    def __init__(self, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> None:
        self._topics = topics
        self._options = options
        self._start, self._group = options["start"], options.get("group")
        if isinstance(topics, str) or not topics or len(set(topics)) != len(topics):
            raise ValueError(f"topics must be a sequence of distinct names, not {topics!r}")
        if self._start not in {"earliest", "latest", "committed"}:
            raise ValueError(f"start must be earliest, latest or committed, not {self._start!r}")
        if self._start == "committed" and self._group is None:
            raise ValueError("start 'committed' needs a group")
        self._assigned: Collection[TopicPartition] = ()

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(sorted(self._assigned))

    def seek(self, at: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self._seek(self._own(at), offset)

    async def seek_to_beginning(self, *at: TopicPartition) -> None:
        for one, offset in (await self._beginnings(at or self.partitions)).items():
            self.seek(one, offset)

    @abstractmethod
    async def position(self, at: TopicPartition) -> int: ...

    async def end_offsets(self, *, undecided: bool = False) -> dict[TopicPartition, int]:
        return await self._ends(self.partitions, undecided=undecided)

    async def lag(self) -> int:
        ends = await self.end_offsets()
        return sum([max(0, end - await self.position(at)) for at, end in ends.items()])

    @abstractmethod
    async def committed(self, at: TopicPartition) -> int | None: ...

    async def _first(self) -> dict[TopicPartition, int]:
        if self._start == "latest":
            return await self._ends(self.partitions)
        positions = await self._beginnings(self.partitions)
        if self._start == "committed":
            for at in self.partitions:
                if (offset := await self.committed(at)) is not None:
                    positions[at] = offset
        return positions

    def _own(self, at: TopicPartition) -> TopicPartition:
        if at not in self._assigned:
            raise ValueError(f"{at.topic}[{at.partition}] is not one of this reader's partitions")
        return at

    def _grouped(self) -> str:
        if self._group is None:
            raise ValueError("a reader without a group commits nothing")
        return self._group

    @abstractmethod
    def _seek(self, at: TopicPartition, offset: int) -> None: ...

    @abstractmethod
    async def _beginnings(self, at: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...

    @abstractmethod
    async def _ends(self, at: Sequence[TopicPartition], *, undecided: bool = False) -> dict[TopicPartition, int]: ...
