"""Settings of one client that an operator may change from afar: how often, how long and in which form it works.

Never what it learns, on which data or from where: those are its owner's.
"""

from collections.abc import Mapping

from pydantic import ValidationError

from llmos_stream.config.base import explain
from llmos_stream.config.client import ClientSettings, CodecSettings
from llmos_stream.config.names import did_you_mean
from llmos_stream.config.plugins import CODECS
from llmos_stream.errors import ConfigError

ORDERED = (
    "client.pace_seconds",
    "client.epochs",
    "client.local_steps",
    "codec.name",
    "codec.block",
    "codec.rounding",
    "codec.fraction",
    "codec.chunk",
    "codec.keep",
    "codec.error_feedback",
    "codec.feedback_decay",
    "codec.zstd_level",
)
"""What may be ordered. A codec must be built in, or the one that the client's own settings name."""


def ordered(
    client: ClientSettings, codec: CodecSettings, order: Mapping[str, object]
) -> tuple[ClientSettings, CodecSettings]:
    """A client's own settings with what is ordered in their place.

    Raises:
        ConfigError: Something is ordered that may not be, or makes no sense.
    """
    given: dict[str, dict[str, object]] = {"client": {}, "codec": {}}
    for name, value in order.items():
        if name not in ORDERED:
            raise ConfigError(f"{name}: no operator sets this{did_you_mean(name, ORDERED)}")
        section, _, field = name.partition(".")
        given[section][field] = value
    form = given["codec"].get("name", codec.name)
    if form != codec.name and form not in CODECS.built_in:
        raise ConfigError(f"codec.name: {str(form)[:40]} is neither built in nor what this client was set up with")
    try:
        return (
            ClientSettings.model_validate({**client.model_dump(exclude_unset=True), **given["client"]}),
            CodecSettings.model_validate({**codec.model_dump(exclude_unset=True), **given["codec"]}),
        )
    except ValidationError as error:
        raise ConfigError(explain(error).replace("\n", "; ")) from None
