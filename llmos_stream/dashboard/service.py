"""The live page as a service beside the monitor: the board, the feed, and the port."""

from collections.abc import Callable

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.dashboard.app import make_app
from llmos_stream.dashboard.assets import Assets
from llmos_stream.dashboard.board import Board
from llmos_stream.dashboard.feed import Feed
from llmos_stream.dashboard.follow import follow
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.dashboard.operating import operator
from llmos_stream.dashboard.view import view
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.log.events import follow_events
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.types import Event
from llmos_stream.web.server import ListenAddress, serve_http

_DRAIN = 0.2  # of the time that a stop may take
_WORKERS = 1


class LivePage:
    """The page of one federation: `show` it from the beginning, and `follow` the federation once its broker answers.

    Until then the page says that it waits for the broker; it becomes live by itself.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._board = Board(settings.federation.name, reached=False)
        self._broker: Broker | None = None

    async def show(self, shutdown: Shutdown) -> None:
        """Answer on the port of the settings until a stop is asked for. Raises ConfigError when it cannot be had."""
        ours, board = self._settings.dashboard, self._board
        may_operate = ours.token is not None
        feed = Feed(lambda: view(board, may_operate), lambda: board.changes, lambda: board.now_ms)
        place = ListenAddress("dashboard", ours.host, ours.port or 0)
        drain = self._settings.runtime.stop_seconds * _DRAIN
        async with Offload(_WORKERS) as offload:
            older = OlderVersions(self._reached, self._settings.federation.name)
            assets = await offload.run(Assets, offload)
            app = make_app(ours, board, feed, assets, operator(self._reached, self._settings, offload), older)
            await run_all(
                serve_http(app, place, "the live page is", shutdown, drain, strict=True),
                feed.run(shutdown),
                assets.plotly(),
            )

    async def follow(self, broker: Broker, take: Callable[[Event], object], shutdown: Shutdown) -> None:
        """Give every event of the log to `take`, as `roles.follow_events` does, and keep the page told meanwhile."""

        def take_both(event: Event) -> None:
            take(event)
            self._board.take(event)

        self._broker = broker
        self._board.reach()
        await run_all(
            follow_events(broker, Topics(self._settings.federation.name), take_both, shutdown),
            follow(broker, self._settings, self._board, shutdown),
        )

    def _reached(self) -> Broker:
        if self._broker is None:
            raise BrokerUnavailable("the broker has not answered yet")
        return self._broker
