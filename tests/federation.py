"""A federation as the roles are given it."""

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.log.federation import Federation
from llmos_stream.runtime import Offload, Shutdown


def federation_of(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown | None = None) -> Federation:
    """What `settings` name, on `broker`."""
    return Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown or Shutdown())
