"""The live page as a service beside the monitor: the board, the feed, and the port."""

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.dashboard.app import make_app
from llmos_stream.dashboard.assets import Assets
from llmos_stream.dashboard.board import Board
from llmos_stream.dashboard.feed import Feed
from llmos_stream.dashboard.follow import follow
from llmos_stream.dashboard.operating import operator
from llmos_stream.dashboard.view import view
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.runtime.http import serve_http

_DRAIN = 0.2  # of the time that a stop may take


async def run_dashboard(broker: Broker, settings: Settings, board: Board, offload: Offload, shutdown: Shutdown) -> None:
    """Show the board until a stop is asked for; its events are the caller's to give. Nothing without a port.

    Raises ConfigError when the port cannot be had.
    """
    ours = settings.dashboard
    if ours.port is None:
        return
    may_operate = ours.token is not None
    feed = Feed(lambda: view(board, may_operate), lambda: board.changes, lambda: board.now_ms)
    assets = await offload.run(Assets, offload)
    app = make_app(ours, board, feed, assets, operator(broker, settings, offload))
    drain = settings.runtime.stop_seconds * _DRAIN
    await run_all(
        serve_http(app, (ours.host, ours.port), "dashboard", "the live page is", shutdown, drain),
        feed.run(shutdown),
        follow(broker, settings, board, shutdown),
        assets.plotly(),
    )
