"""A run as tables, for notebooks: `llmos_stream.history(...)`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import pandas as pd
except ModuleNotFoundError:
    pd = None

from llmos_stream.broker import Topics, connect
from llmos_stream.config import Settings, settings_of
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.log.past import past_events
from llmos_stream.reporting.history.tables import Row, Tables
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.background import Background
from llmos_stream.tracking.follow import settings_of_version


class RunTables:
    """What a federation's log says, as tables: data frames where pandas is installed, lists of dicts elsewhere.

    Times are in UTC. A value that is missing was in no event.
    """

    def __init__(self, tables: Tables, settings: Mapping[str, str]) -> None:
        self._tables = tables
        self.settings = settings
        """What the newest version was made under, by full names."""

    @property
    def versions(self) -> Any:
        """A row for each version, by number."""
        return _frame(self._tables.versions)

    @property
    def updates(self) -> Any:
        """A row for each update: what its client said of it, and what became of it (`verdict`)."""
        return _frame(self._tables.updates)

    @property
    def evaluations(self) -> Any:
        """A row for each version that an evaluator measured, with a column for each metric."""
        return _frame(self._tables.evaluations)

    @property
    def site_evaluations(self) -> Any:
        """A row for each model that a site measured on its own validation data, with a column for each metric."""
        return _frame(self._tables.site_evaluations)

    @property
    def clients(self) -> Any:
        """A row for each client, the largest share first."""
        return _frame(self._tables.clients)

    @property
    def events(self) -> Any:
        """A row for each event, in the order of the log."""
        return _frame(self._tables.events)

    @property
    def finished(self) -> str | None:
        """Why the run has ended; None while it goes on."""
        end = self._tables.history.finish
        return None if end is None else end.reason or "yes"

    @property
    def summary(self) -> dict[str, object]:
        """The run in numbers, as `llmos-stream report --json` has it."""
        return self._tables.history.summary()

    def __repr__(self) -> str:
        found = self._tables
        counts = (f"{len(rows)} {name}" for name, rows in (("versions", found.versions), ("updates", found.updates)))
        return f"<run of {', '.join(counts)}; {f'finished: {self.finished}' if self.finished else 'not finished'}>"


def history(
    federation: str | None = None,
    broker: str | Sequence[str] | None = None,
    *,
    settings: Settings | Mapping[str, Any] | Path | str | None = None,
) -> RunTables:
    """Read everything that a federation's log holds now, of a run that goes on or has ended.

    Args:
        federation: Short for the setting `federation.name`.
        broker: Short for `broker.bootstrap_servers`.
        settings: Some by section, a TOML file, or a whole `Settings`; the others are read from the environment.

    Raises:
        ConfigError: Settings make no sense, or name no broker.
        BrokerUnavailable: The broker does not answer.
        TopicMissing: There is no such federation.
    """
    found = settings_of(settings, {"federation.name": federation, "broker.bootstrap_servers": broker})
    # A notebook has an event loop of its own in this thread.
    background = Background("llmos-history")
    try:
        return background.run(_read(found))
    finally:
        background.close()


async def _read(settings: Settings) -> RunTables:
    async with connect(settings.broker) as broker, Offload(1) as offload:
        return await read_tables(
            Federation(broker, Topics(settings.federation.name), settings.wire, offload, Shutdown())
        )


async def read_tables(federation: Federation) -> RunTables:
    """As `history`, of a federation on any broker."""
    tables = Tables()
    async with federation.control() as control:
        async for event in past_events(federation, control.finished):
            tables.add(event)
    async with version_index(federation.broker, federation.topics.models) as index:
        newest = await index.newest()
    return RunTables(tables, {} if newest is None else settings_of_version(newest.head))


def _frame(rows: list[Row]) -> Any:
    return rows if pd is None else pd.DataFrame(rows)
