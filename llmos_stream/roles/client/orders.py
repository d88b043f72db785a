"""What an operator has this client do otherwise than its own settings say."""

import logging

from llmos_stream.config import ClientSettings, CodecSettings
from llmos_stream.config.orders import ordered
from llmos_stream.errors import ConfigError
from llmos_stream.types import ClientOrder

logger = logging.getLogger(__name__)


class Orders:
    """A client's settings as they are now. One that makes no sense changes nothing, and is told."""

    def __init__(self, client: ClientSettings, codec: CodecSettings) -> None:
        self._own = client, codec
        self._taken = ClientOrder()
        self.client = client
        self.codec = codec

    def take(self, order: ClientOrder | None) -> None:
        """Follow the newest order; None: none holds any more."""
        order = order or ClientOrder()
        if order.settings == self._taken.settings:
            return
        self._taken = order
        try:
            self.client, self.codec = ordered(*self._own, order.settings)
        except ConfigError as error:
            logger.warning("the operator orders what this client cannot do, and nothing of it is done: %s", error)
            self.client, self.codec = self._own
            return
        if order.settings:
            told = ", ".join(f"{name} {value}" for name, value in order.settings.items())
            logger.warning(
                "the operator has set %s for this client%s", told, f": {order.reason}" if order.reason else ""
            )
        else:
            logger.warning("the operator has taken back what was set for this client")
