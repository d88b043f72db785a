"""Receiving versions: the newest one, checked against this client's model."""

from collections.abc import Mapping

from llmos_stream.broker import Reader
from llmos_stream.codec import Layout
from llmos_stream.core.client_policy import is_too_stale
from llmos_stream.errors import BrokerUnavailable, ConfigError, Reason, Rejected
from llmos_stream.log.control import ControlView
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import newest_version
from llmos_stream.log.versions import Version
from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.training.differences import difference

_FETCH_SECONDS = 120.0


class VersionReceiver:
    """Follows the versions through a reader of them, as the control topic points to them."""

    def __init__(self, federation: Federation, control: ControlView, models: Reader, layout: Layout) -> None:
        self._federation = federation
        self._control = control
        self._replica = federation.replica(models, shares=True)
        self._layout = layout
        self._max_staleness: int | None = None

    @property
    def version_span(self) -> TraceParent | None:
        """The span that made the version received last, where that is known."""
        return self._replica.parent_span

    async def newest(self, above: int | None, seconds: float) -> Version | None:
        """The newest version above `above`; None when there is none after `seconds`, at shutdown or at the end.

        Its weights are good until the next call.

        Raises:
            ConfigError: the version is of another model than this client's.
            BrokerUnavailable: the version did not arrive.
        """
        shutdown = self._federation.shutdown
        await self._control.newer_than(above, seconds, shutdown)
        pointer = self._control.latest
        if shutdown.requested or pointer is None or (above is not None and pointer.version <= above):
            return None
        version = await self._fetch()
        if version is None or (above is not None and version.head.number <= above):
            return None
        if version.layout.digest != self._layout.digest:
            raise ConfigError(
                "task.entry, task.share: this client's shared tensors are not the federation's "
                f"({difference(self._layout, version.layout)})"
            )
        self._max_staleness = max_staleness_of(version.head.rule)
        return version

    def check_base(self, base: int) -> None:
        """Raises Rejected(TOO_STALE) when an update on version `base` cannot count any more, by what is known."""
        newest = None if self._control.latest is None else self._control.latest.version
        if is_too_stale(base, newest, self._max_staleness):
            raise Rejected(
                Reason.TOO_STALE,
                f"base version {base} is {(newest or 0) - base} versions old; "
                f"staleness.maximum is {self._max_staleness}",
            )

    async def _fetch(self) -> Version | None:
        """The newest version; None when a stop comes first, and where what was announced is none."""
        try:
            return await self._federation.until_stop(newest_version(self._control, self._replica, _FETCH_SECONDS))
        except BrokerUnavailable:
            if self._federation.shutdown.requested:
                return None
            raise


def max_staleness_of(rule: Mapping[str, object]) -> int | None:
    """`staleness.maximum` of the rule that a version was made under; it came from the log, so it may be anything."""
    staleness = rule.get("staleness")
    maximum = staleness.get("maximum") if isinstance(staleness, Mapping) else None
    return maximum if isinstance(maximum, int) and not isinstance(maximum, bool) and maximum >= 0 else None
