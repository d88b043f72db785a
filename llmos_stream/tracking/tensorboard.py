"""`tensorboard:FOLDER`: a folder of event files for each run. Steps are versions, times those of the log."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.tracking.sink import END, SETTINGS, Run, run_folder, settings_table, told_end, unwritable

logging.getLogger("tensorboard").setLevel(logging.ERROR)


class TensorBoard:
    """Each opening adds a file; the viewer reads all files of a folder as one run."""

    def __init__(self, root: Path) -> None:
        self.target = f"tensorboard:{root}"
        self._root = root
        self._writer: EventFileWriter | None = None
        self._texts: set[tuple[str, str]] = set()
        self._time_ms = 0

    def open(self, run: Run) -> Iterable[tuple[str, int]]:
        self.close()
        folder = run_folder(self._root, run, "tensorboard")
        self._time_ms = run.started_ms
        known = []
        try:
            events = [event for path in sorted(folder.glob("events.out.tfevents.*")) for event in _events(path)]
            self._writer = EventFileWriter(str(folder))
        except OSError as error:
            raise unwritable("tensorboard", folder, error) from error
        for event in events:
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    known.append((value.tag, event.step))
                elif value.tensor.string_val:
                    self._texts.add((value.tag, value.tensor.string_val[0].decode()))
        return known

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            self._time_ms = max(self._time_ms, point.time_ms)
            value = Summary.Value(tag=point.name, simple_value=point.value)
            self._add(Summary(value=[value]), point.step, point.time_ms)
        self._flush()

    def describe(self, settings: Mapping[str, str]) -> None:
        self._tell(SETTINGS, settings_table(settings), 0, self._time_ms)

    def finish(self, end: Finish) -> None:
        text = ", ".join(f"{name}: {value}" for name, value in told_end(end).items())
        self._tell(END, text, end.version or 0, end.time_ms)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _tell(self, tag: str, text: str, step: int, time_ms: int) -> None:
        if (tag, text) not in self._texts:
            self._texts.add((tag, text))
            self._add(text_pb(tag, text), step, time_ms)
        self._flush()

    def _add(self, summary: Summary, step: int, time_ms: int) -> None:
        if self._writer is None:
            raise ValueError("it is not open")
        self._writer.add_event(Event(wall_time=time_ms / 1000, step=step, summary=summary))

    def _flush(self) -> None:
        try:
            if self._writer is not None:
                self._writer.flush()
        except OSError as error:
            raise unwritable("tensorboard", self._root, error) from error


def _events(path: Path) -> Iterator[Event]:
    """The events of a file up to its end, or to where a crash has cut it off."""
    yield from LegacyEventFileLoader(str(path)).Load()
