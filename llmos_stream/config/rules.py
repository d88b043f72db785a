"""How open rules are named in settings, and the options of those that are built in."""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

from llmos_stream.config.base import Count, Positive, Section
from llmos_stream.config.plugins import CODECS, SERVER_OPTIMIZERS, STALENESS, STOP_RULES, STRATEGIES, check_installed

_NAME = re.compile(r"[A-Za-z_][\w.-]{0,127}(:[A-Za-z_][\w.]{0,127})?")


def _well_formed(name: str) -> str:
    """Whether there is such a rule is found out where it is needed: not every role needs it."""
    if not _NAME.fullmatch(name):
        raise ValueError("the name of a rule is a word, or package.module:callable")
    return name


def _parsed(value: object) -> object:
    """`{"f": 1}` as JSON, or `f=1,m=2` as people type it."""
    if not isinstance(value, str):
        return value
    if not value.strip() or value.lstrip().startswith("{"):
        return json.loads(value or "{}")
    pairs = [pair.partition("=") for pair in value.split(",")]
    if any(not (name.strip() and equals) for name, equals, _ in pairs):
        raise ValueError("options are name=value,name=value or a JSON object")
    return {name.strip(): _number(text.strip()) for name, _, text in pairs}


def _number(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


StrategyName = Annotated[str, STRATEGIES, AfterValidator(_well_formed)]
StalenessName = Annotated[str, STALENESS, AfterValidator(_well_formed)]
ServerOptimizerName = Annotated[str, SERVER_OPTIMIZERS, AfterValidator(_well_formed)]
CodecName = Annotated[str, CODECS, AfterValidator(partial(check_installed, CODECS))]
StopRuleName = Annotated[str, STOP_RULES, AfterValidator(_well_formed)]
Options = Annotated[Mapping[str, JsonValue], BeforeValidator(_parsed)]
"""What a rule itself takes, validated by the rule's own model."""
NO_OPTIONS: Mapping[str, JsonValue] = {}


class TrimmedMeanOptions(Section):
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """The part of the values that is left out at either end."""


class KrumOptions(Section):
    f: Annotated[int, Field(ge=0)] | None = None
    """How many hostile updates of a version are tolerated. Unset: as many as the buffer allows, (K - 3) / 2."""


class MultiKrumOptions(KrumOptions):
    m: Count | None = None
    """How many updates are averaged. Unset: K - f."""


class NormBoundOptions(Section):
    multiple: Positive = 1.0
    """The bound, as a multiple of the median norm of the updates of a version."""
