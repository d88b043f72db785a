"""How open rules are named in settings, and the options of those that are built in."""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, model_validator

from llmos_stream.config.base import Count, Positive, Section, Whole
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


class FedAvgOptions(Section):
    late: Literal["refuse", "drop"] = "refuse"
    """What becomes of an update of a round that is over. drop: it is counted and told, but not warned of, and nothing
    of it goes into quarantine."""


class TrimmedMeanOptions(Section):
    beta: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """The part of the values that is left out at either end."""


class KrumOptions(Section):
    f: Whole | None = None
    """How many hostile updates of a version are tolerated. Unset: as many as the buffer allows, (K - 3) / 2."""


class MultiKrumOptions(KrumOptions):
    m: Count | None = None
    """How many updates are averaged. Unset: K - f."""


class FadasOptions(Section):
    delay: Whole = 1
    """tau_c: where the stalest update of a version is staler, the step is made smaller."""


class DelayedNesterovOptions(Section):
    period: Annotated[int, Field(ge=1, le=1 << 16)] = 4
    """N: the momentum takes in what came once in so many versions. As many as clients take part."""
    activation: Annotated[float, Field(ge=0)] = 0.0
    """c: the part of the momentum that the versions between are moved by. At most 1 / period."""

    @model_validator(mode="after")
    def _activation_fits(self) -> Self:
        if self.activation * self.period > 1:
            raise ValueError(f"activation: {self.activation:g} is more than 1 / period (1 / {self.period})")
        return self


class NormBoundOptions(Section):
    multiple: Positive = 1.0
    """The bound, as a multiple of the median norm of the updates of a version."""
