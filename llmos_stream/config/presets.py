"""Presets: a name for a set of values that belong together.

A preset lies beneath all that a person says and above the defaults, a command's own included. Where a person names
another rule than it does (another codec, another server optimiser), what it says of that section is left out whole: the
values would be another rule's.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from llmos_stream.config.base import Section
from llmos_stream.config.names import did_you_mean

PRESETS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    # Douillard et al. 2023, arXiv 2311.08105
    "diloco": {
        "codec": {"name": "float32"},
        "server_optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
    },
    # Sarfi et al. 2025, arXiv 2508.15706
    "sparseloco": {
        "codec": {"name": "topk2", "chunk": 4096, "keep": 64, "error_feedback": True, "feedback_decay": 0.95},
        "server_optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0, "nesterov": False},
    },
    # docs/study.md has what was measured
    "devices": {"staleness": {"kind": "polynomial", "a": 0.25}},
    "silos": {"aggregation": {"buffer_size": 10}, "staleness": {"kind": "constant"}},
    # docs/language-models.md, "Which average"
    "llm": {"codec": {"name": "topk2", "chunk": 4096, "keep": 1024, "error_feedback": True, "feedback_decay": 1.0}},
}
_NAMING = {"aggregation": "strategy", "codec": "name", "server_optimizer": "name", "staleness": "kind"}
"""The field of a section that says whose the others are."""


def _known(name: object) -> object:
    if isinstance(name, str) and name not in PRESETS:
        raise ValueError(f"there is no preset {name:.40}{did_you_mean(name, PRESETS) or '; ' + _listed()}")
    return name


def _listed() -> str:
    return f"there are {', '.join(PRESETS)}"


PresetName = Annotated[Literal["diloco", "sparseloco", "devices", "silos", "llm"], BeforeValidator(_known)]


def added_by_preset(given: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """What the preset that `given` names (values by section) adds to them; nothing where there is no such preset."""
    name = (_fields(given.get("federation")) or {}).get("preset")
    found = {}
    for section, values in PRESETS.get(name, {}).items() if isinstance(name, str) else ():
        said, naming = _fields(given.get(section, {})), _NAMING.get(section, "")
        if said is not None and (naming not in values or said.get(naming, values[naming]) == values[naming]):
            found[section] = {field: value for field, value in values.items() if field not in said}
    return found


def over_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` (values by section) with what its preset adds."""
    added = added_by_preset(given)
    laid = {section: {**fields, **(_fields(given.get(section, {})) or {})} for section, fields in added.items()}
    return {**given, **laid}


def _fields(section: object) -> Mapping[str, Any] | None:
    """What is said of a section; None where that is no section, which is refused elsewhere."""
    if isinstance(section, Section):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, Mapping) else None
