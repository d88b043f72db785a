"""What an experiment tracker is to a run: a place that says what it holds already and takes the rest."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from llmos_stream.errors import LlmosError
from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish

SETTINGS = "run/settings"
"""Where a tracker that knows only series keeps the run's settings, as a text."""
END = "run/end"
"""Where it keeps how the run has ended."""


class TrackerUnavailable(LlmosError):
    """A tracker does not answer, or its folder cannot be written; the message says which and what to do."""

    retriable = True


@dataclass(frozen=True, slots=True)
class Run:
    """A run by its federation and its beginning, which stays the same however often it is looked at."""

    federation: str
    started_ms: int
    is_whole: bool = True
    """Whether the log still holds the beginning. It is unknown otherwise, and `started_ms` is that of what is left."""

    @property
    def name(self) -> str:
        """Such as `hospital-20261128-093000`."""
        return f"{self.federation}-{datetime.fromtimestamp(self.started_ms / 1000, UTC):%Y%m%d-%H%M%S}"

    def name_among(self, known: Iterable[str]) -> str:
        """Its name, where a place holds runs of these names.

        Without its beginning it is the newest run of its federation there.
        """
        stem = len(self.name) - len("-00000000-000000")
        own = [name for name in known if len(name) == len(self.name) and name[:stem] == self.federation]
        return self.name if self.is_whole else max(own, default=self.name)


class Sink(Protocol):
    """A place for one run. Its methods work for a while, one at a time; any may raise TrackerUnavailable."""

    @property
    def target(self) -> str:
        """As a person names it."""

    def open(self, run: Run) -> Iterable[tuple[str, int]]:
        """Find the run there, or make it. Returns the name and the step of each point that it holds.

        Called again after TrackerUnavailable.
        """

    def write(self, points: Sequence[Point]) -> None:
        """Keep points, each of which is new."""

    def describe(self, settings: Mapping[str, str]) -> None:
        """Keep what the run was made under. Said each time that it is opened, and at the end."""

    def finish(self, end: Finish) -> None:
        """Keep how the run has ended."""

    def close(self) -> None:
        """Let go of it. The run may go on."""


def run_folder(root: Path, run: Run, kind: str) -> Path:
    """The run's folder below `root`, made where it is not there."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = root / run.name_among(path.name for path in root.iterdir() if path.is_dir())
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise unwritable(kind, root, error) from error
    return folder


def unwritable(kind: str, path: Path, error: OSError) -> TrackerUnavailable:
    """The error of a folder that cannot be written."""
    return TrackerUnavailable(
        f"--to {kind}:{path}: cannot be written ({error.strerror or error}); name a folder that this user may write to"
    )


def settings_table(settings: Mapping[str, str]) -> str:
    """Settings as a table in Markdown."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"| setting | value |\n| --- | --- |\n{rows}"


def told_end(end: Finish) -> dict[str, str]:
    """How a run has ended, in words by name."""
    told = {"finished": end.reason or "yes", "detail": end.detail}
    version = {} if end.version is None else {"version": str(end.version)}
    return {name: value for name, value in told.items() if value} | version
