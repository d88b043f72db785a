"""The live page as a service beside the monitor: the board, the feed, and the port."""

from collections.abc import Callable

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.dashboard.app import make_app
from llmos_stream.dashboard.assets import Assets
from llmos_stream.dashboard.board import Board
from llmos_stream.dashboard.feed import Feed
from llmos_stream.dashboard.follow import follow
from llmos_stream.dashboard.operating import operator
from llmos_stream.dashboard.view import view
from llmos_stream.roles import follow_events
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.runtime.http import Place, serve_http
from llmos_stream.types import Event

_DRAIN = 0.2  # of the time that a stop may take


async def follow_with_page(
    broker: Broker, settings: Settings, take: Callable[[Event], object], offload: Offload, shutdown: Shutdown
) -> None:
    """Give every event of the log to `take`, as `roles.follow_events` does, and show the live page meanwhile.

    Raises ConfigError when the port cannot be had.
    """
    board = Board(settings.federation.name)

    def take_both(event: Event) -> None:
        take(event)
        board.take(event)

    await run_all(
        follow_events(broker, settings, take_both, shutdown),
        follow(broker, settings, board, shutdown),
        _show(broker, settings, board, offload, shutdown),
    )


async def _show(broker: Broker, settings: Settings, board: Board, offload: Offload, shutdown: Shutdown) -> None:
    ours = settings.dashboard
    may_operate = ours.token is not None
    feed = Feed(lambda: view(board, may_operate), lambda: board.changes, lambda: board.now_ms)
    assets = await offload.run(Assets, offload)
    app = make_app(ours, board, feed, assets, operator(broker, settings, offload))
    place = Place("dashboard", ours.host, ours.port or 0)
    drain = settings.runtime.stop_seconds * _DRAIN
    await run_all(
        serve_http(app, place, "the live page is", shutdown, drain, strict=True),
        feed.run(shutdown),
        assets.plotly(),
    )
