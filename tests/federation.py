"""A federation as the roles are given it."""

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.federation import Federation
from llmos_stream.runtime import SYSTEM_CLOCK, Offload, Shutdown
from llmos_stream.types import Event, EventKind


def federation_of(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown | None = None) -> Federation:
    """What `settings` name, on `broker`."""
    return Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown or Shutdown())


def event(kind: EventKind, role: str, **data: object) -> Event:
    """What happened now."""
    return Event(kind, role, SYSTEM_CLOCK.time_ms(), data)
