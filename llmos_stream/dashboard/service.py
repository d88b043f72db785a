"""The live page as a service beside the monitor: the view, the stream of states, and the port."""

from collections.abc import Awaitable, Callable

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.dashboard.app import OperatorActions, make_app
from llmos_stream.dashboard.assets import load_assets
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.dashboard.follow import follow
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.dashboard.page_state import page_state
from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.log.events import follow_events
from llmos_stream.log.pausing import set_paused
from llmos_stream.registry import promote
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.types import Event, TopicKind
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.server import serve_http

_DRAIN = 0.2  # of the time that a stop may take
_WORKERS = 1


class LivePage:
    """The page of one federation: `show` it at once, and `follow` the federation once its broker answers.

    Until then the page says that it waits for the broker.
    """

    def __init__(self, settings: Settings, finish: Callable[[Broker], Awaitable[object]]) -> None:
        """`finish` ends the run."""
        self._settings = settings
        self._finish = finish
        self._view = FederationView(settings.federation.name, reached=False)
        self._broker: Broker | None = None

    async def show(self, shutdown: Shutdown) -> None:
        """Answer on the port of the settings until a stop is asked for.

        Raises:
            ConfigError: The port cannot be opened.
        """
        ours, view, topics = self._settings.dashboard, self._view, Topics(self._settings.federation.name)
        may_operate = ours.token is not None
        states = StateStream(
            lambda: page_state(view, may_operate), lambda: view.changes, lambda: view.now_ms, ours.viewers
        )
        address = ListenAddress("dashboard", ours.host, ours.port or 0)
        drain = self._settings.runtime.stop_seconds * _DRAIN
        async with Offload(_WORKERS) as offload:
            older = OlderVersions(self._reached, topics.federation)
            assets = await offload.run(load_assets)
            actions = OperatorActions(
                set_paused=lambda paused: set_paused(self._reached(), topics, paused),
                promote=lambda number: promote(self._reached(), topics, self._settings.registry, number, offload),
                finish=lambda: self._finish(self._reached()),
            )
            app = make_app(ours, view, states, assets, actions, older)
            await run_all(
                serve_http(app, address, "the live page is", shutdown, drain, strict=True),
                states.run(shutdown),
            )

    async def follow(self, broker: Broker, take: Callable[[Event], object], shutdown: Shutdown) -> None:
        """Give every event of the log to `take`, as `log.events.follow_events` does, and keep the page up to date."""

        def take_both(event: Event) -> None:
            take(event)
            self._view.add_event(event)

        topics = Topics(self._settings.federation.name)
        self._broker = broker
        self._view.mark_reached()
        await run_all(
            follow_events(broker, topics, take_both, shutdown, counted={TopicKind.CONTROL}),
            follow(broker, topics, self._view, shutdown),
        )

    def _reached(self) -> Broker:
        if self._broker is None:
            raise BrokerUnavailable("the broker has not answered yet")
        return self._broker
