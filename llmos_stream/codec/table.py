"""The closed table of codecs: wire id and parameters -> implementation.

| id | name | parameters |
| --- | --- | --- |
| 1, 2, 3 | float32, float16, bfloat16 | none |
| 4, 5 | int8, int4 | `block`: elements to a scale, one of 32 to 1024 by powers of two; `stochastic`: 0 or 1 |
| 6 | topk | `fraction`: over 0, at most 1; `bits`: 8 or 32; `stochastic`: 0 or 1, 0 with 32 bits |
| 7 | topk2 | `chunk`: one of 64 to 65536 by powers of two; `keep`: elements of a chunk, at least 1, at most all |
| 128 to 255 | of packages | their own (see `packaged`) |

Every parameter is required and none may be added: the meaning of an id never changes, new meanings get new ids.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from llmos_stream.codec.base import Codec
from llmos_stream.codec.blocks import Blocks
from llmos_stream.codec.floating import Floating
from llmos_stream.codec.packaged import RESERVED, packaged_codec, packaged_codecs
from llmos_stream.codec.topk import TopK
from llmos_stream.codec.topk2 import TopK2
from llmos_stream.config import CodecSettings, VersionSettings
from llmos_stream.config.plugins import CODECS, find_plugin
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.types import CodecId, CodecSpec

_Rule = Callable[[Any], bool]


class _Entry(NamedTuple):
    rules: Mapping[str, _Rule]
    make: Callable[[Mapping[str, Any]], Codec]


def _one_of(*choices: int) -> _Rule:
    return lambda value: type(value) is int and value in choices


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


_FLAG = _one_of(0, 1)
_BLOCK_RULES: Mapping[str, _Rule] = {"block": _one_of(32, 64, 128, 256, 512, 1024), "stochastic": _FLAG}
_TOPK_RULES: Mapping[str, _Rule] = {"fraction": _is_fraction, "bits": _one_of(8, 32), "stochastic": _FLAG}
_TOPK2_RULES: Mapping[str, _Rule] = {"chunk": _one_of(*(1 << bits for bits in range(6, 17))), "keep": _is_count}


def _floating(dtype: torch.dtype) -> _Entry:
    return _Entry({}, lambda params: Floating(dtype))


def _blocks(bits: int) -> _Entry:
    return _Entry(_BLOCK_RULES, lambda params: Blocks(bits, params["block"], bool(params["stochastic"])))


def _topk(params: Mapping[str, Any]) -> Codec:
    if params["bits"] == 32 and params["stochastic"]:
        raise Rejected(Reason.BAD_CODEC_PARAMS, "topk: 32 bits are not rounded, so stochastic must be 0")
    return TopK(float(params["fraction"]), params["bits"], bool(params["stochastic"]))


def _topk2(params: Mapping[str, Any]) -> Codec:
    if params["keep"] > params["chunk"]:
        raise Rejected(Reason.BAD_CODEC_PARAMS, f"topk2: keep {params['keep']} of {params['chunk']}")
    return TopK2(params["chunk"], params["keep"])


TABLE: Mapping[CodecId, _Entry] = {
    CodecId.FLOAT32: _floating(torch.float32),
    CodecId.FLOAT16: _floating(torch.float16),
    CodecId.BFLOAT16: _floating(torch.bfloat16),
    CodecId.INT8: _blocks(8),
    CodecId.INT4: _blocks(4),
    CodecId.TOPK: _Entry(_TOPK_RULES, _topk),
    CodecId.TOPK2: _Entry(_TOPK2_RULES, _topk2),
}


def codec_for(spec: CodecSpec) -> Codec:
    """The codec that `spec`, possibly from outside, names.

    Raises:
        Rejected: UNKNOWN_CODEC for an id that is not in the table; BAD_CODEC_PARAMS for a parameter that is missing,
            unknown, out of range or of another type.
    """
    # What came from outside need not be what the type says.
    id: Any = spec.id
    params: Any = spec.params
    if type(id) is int and id in RESERVED and isinstance(params, Mapping):
        packaged = packaged_codec(id, params)
        if packaged is None:
            raise Rejected(Reason.UNKNOWN_CODEC, f"codec id {id} is a package's, which is not installed here")
        return packaged
    if type(id) not in (int, CodecId) or id not in TABLE:
        raise Rejected(Reason.UNKNOWN_CODEC, f"codec id {id!r:.60}")
    rules, make = TABLE[id]
    name = CodecId(id).label
    if not isinstance(params, Mapping) or params.keys() != rules.keys():
        raise Rejected(Reason.BAD_CODEC_PARAMS, f"{name} takes exactly {sorted(rules)}, not {params!r:.120}")
    for key, is_valid in rules.items():
        if not is_valid(params[key]):
            raise Rejected(Reason.BAD_CODEC_PARAMS, f"{name}: {key} cannot be {params[key]!r:.60}")
    return make(params)


def spec_of(settings: CodecSettings) -> CodecSpec:
    """The spec that `settings` ask for. Top-k values take 8 bits, rounded as `settings.rounding` says.

    Raises:
        ConfigError: The settings name a codec that is not installed, or options that it does not take.
    """
    if settings.name.upper() not in CodecId.__members__:
        return _packaged_spec(settings)
    if settings.options:
        raise ConfigError(f"codec.options: {settings.name} takes none; it has settings of its own")
    id = CodecId[settings.name.upper()]
    rounding = settings.rounding or ("nearest" if settings.error_feedback else "stochastic")
    stochastic = int(rounding == "stochastic")
    if id in (CodecId.INT8, CodecId.INT4):
        return CodecSpec(id, {"block": settings.block, "stochastic": stochastic})
    if id is CodecId.TOPK:
        return CodecSpec(id, {"fraction": settings.fraction, "bits": 8, "stochastic": stochastic})
    if id is CodecId.TOPK2:
        return CodecSpec(id, {"chunk": settings.chunk, "keep": settings.keep})
    return CodecSpec(id)


def delta_codec(settings: VersionSettings) -> CodecSpec:
    """How delta versions are written."""
    if settings.codec == "topk2":
        return CodecSpec(CodecId.TOPK2, {"chunk": settings.chunk, "keep": settings.keep})
    return CodecSpec(CodecId[settings.codec.upper()], {"block": settings.block, "stochastic": 0})


def _packaged_spec(settings: CodecSettings) -> CodecSpec:
    plugin = find_plugin(CODECS, {}, settings.name)
    for id, (name, found) in packaged_codecs().items():
        if name == settings.name:
            try:
                return CodecSpec(id, found.options(settings.options).model_dump(mode="json"))
            except ValueError as error:
                raise ConfigError(f"codec.options: {error}") from None
    raise ConfigError(f"codec.name: {settings.name} is {plugin.target!r}, which is no codec with an id from 128 to 255")
