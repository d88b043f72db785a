"""Live progress: a table on a terminal, a line now and then elsewhere."""

from time import monotonic, time

from rich.console import Console, RenderableType
from rich.live import Live

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.events import follow_events
from llmos_stream.reporting import History, line, render
from llmos_stream.runtime import Shutdown
from llmos_stream.types import Event, TopicKind

_LINE_SECONDS = 2.0
_FRAMES_PER_SECOND = 4


class ProgressDisplay:
    """Shows a History as it grows. Use as a context manager, and give it the events."""

    def __init__(self, history: History, console: Console, title: str) -> None:
        self.history = history
        self._console = console
        self._title = title
        self._live = Live(
            console=console, refresh_per_second=_FRAMES_PER_SECOND, get_renderable=self._render, transient=True
        )
        self._printed = monotonic()

    def __enter__(self) -> "ProgressDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def take(self, event: Event) -> None:
        self.history.add(event)
        if not self._console.is_terminal and monotonic() - self._printed > _LINE_SECONDS:
            self._printed = monotonic()
            self._console.print(line(self.history), soft_wrap=True)

    def _render(self) -> RenderableType:
        return render(self.history, title=self._title, now_ms=int(time() * 1000))


async def show_progress(broker: Broker, settings: Settings, console: Console) -> None:
    """Follow the federation of this process's aggregator, which reads two topics too, until cancelled."""
    with ProgressDisplay(History(), console, f"federation {settings.federation.name}") as progress:
        topics = Topics(settings.federation.name)
        counted = {TopicKind.CONTROL, TopicKind.EVALUATIONS}
        await follow_events(broker, topics, progress.take, Shutdown(), counted=counted)
