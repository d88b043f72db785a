"""Codecs of packages: ids from 128 to 255, which nothing that is built in will ever take.

A package names one in the group `llmos_stream.codecs` of its entry points:

    class Ternary:
        id = 200                                            # on the wire, for ever
        Options = TernaryOptions                            # pydantic, numbers alone: they travel in every head

        def __init__(self, options): ...
        def encode(self, values, generator): ...            # -> [1-D uint8, ...]: the body of one slice
        def decode(self, body, out): ...                    # 1-D uint8 into 1-D float32
        def bounds(self, count): ...                        # -> least and most bytes of the body of count elements

`values` are finite, and at least one; `bounds` is believed, since it limits what a payload may claim. Both ends install
the package, clients say `codec.name`. An object is used by several threads at once. Which codecs there are follows from
what is installed here, never from a message: an id that nobody brings is refused, as any other that is unknown.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Generator, Tensor

from llmos_stream.codec.layout import is_finite
from llmos_stream.codec.workspace import Workspace
from llmos_stream.config.plugins import CODECS, Plugin, installed_plugins
from llmos_stream.errors import ConfigError, Reason, Rejected

logger = logging.getLogger(__name__)

RESERVED = range(128, 256)


class PackagedCodec(Protocol):
    """What a package's codec can do."""

    def encode(self, values: Tensor, generator: Generator | None) -> Sequence[Tensor]:
        """The body of `values` (1-D float32) as byte streams (1-D uint8)."""
        ...

    def decode(self, body: Tensor, out: Tensor) -> None:
        """Write the values of `body` into `out`. Whatever it raises refuses the update."""
        ...

    def bounds(self, count: int) -> tuple[int, int]:
        """Least and most bytes of the body of `count` elements."""
        ...


@dataclass(frozen=True, slots=True)
class Packaged:
    """A package's codec as one of the table. See `base.Codec` for the methods. Its quantized form is the values."""

    codec: PackagedCodec

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        if not is_finite(values):
            raise ValueError("values hold NaN or infinity")
        streams = list(self.codec.encode(values, generator))
        if residual is not None:
            decoded = workspace.take("narrow", values.numel(), torch.float32)
            self.codec.decode(torch.cat(streams), decoded)
            torch.sub(values, decoded, out=residual)
        return streams

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        try:
            self.codec.decode(body, out)
        except Exception as error:
            raise Rejected(Reason.CORRUPT_PAYLOAD, f"{type(error).__name__}: {error!s:.200}") from error

    def bounds(self, count: int) -> tuple[int, int]:
        return self.codec.bounds(count)

    def quantized_size(self, count: int) -> int:
        return 4 * count

    def unpacks_in_place(self) -> bool:
        return False

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        self.decode(body, quantized.view(torch.float32), workspace)
        return math.inf

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        return quantized.view(torch.float32)[begin:end]


@cache
def packaged_codecs() -> Mapping[int, tuple[str, Plugin]]:
    """The codecs that are installed here, by id. One that cannot be used is told and left out."""
    found: dict[int, tuple[str, Plugin]] = {}
    for name, plugin in installed_plugins(CODECS).items():
        id = plugin if isinstance(plugin, ConfigError) else getattr(plugin.target, "id", None)
        if isinstance(plugin, ConfigError):
            logger.error("codec %s cannot be used: %s", name, plugin)
        elif type(id) is not int or id not in RESERVED or id in found:
            logger.error("codec %s cannot be used: its id is %r, not one of its own from 128 to 255", name, id)
        else:
            found[id] = name, plugin
    return found


def packaged_codec(id: int, params: Mapping[str, object]) -> Packaged | None:
    """The codec of this id, where it is installed here.

    Raises:
        Rejected: BAD_CODEC_PARAMS for parameters that it does not take.
    """
    if id not in packaged_codecs():
        return None
    name, plugin = packaged_codecs()[id]
    try:
        return Packaged(plugin.target(plugin.options(params)))
    except ValueError as error:
        raise Rejected(Reason.BAD_CODEC_PARAMS, f"{name}: {error!s:.200}") from None
