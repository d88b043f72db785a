"""An experiment: a TOML file of settings, and the arms that are compared.

    [simulation], [population], [task], [client] ...    what all arms have
    [arms.NAME]                                         what one of them has in its place: section.field = value
    [sweep]                                             section.field = [value, value]: each arm once for each value

Without arms there is one, called by the simulation's name.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from llmos_stream import __version__
from llmos_stream.config import did_you_mean, explain
from llmos_stream.config.sources import read_toml
from llmos_stream.errors import ConfigError
from llmos_stream.simulation.settings import RUN_NAMES, RunSettings

_ARMS, _SWEEP = "arms", "sweep"
_MOST_ARMS = 1000


@dataclass(frozen=True, slots=True)
class Arm:
    """One kind of run. `changes` are its settings by full name, where they are not those of all."""

    name: str
    settings: RunSettings
    changes: Mapping[str, object]

    def fingerprint(self, seed: int) -> str:
        """Tells runs apart that could come to different results. Of the package's version, too."""
        values = self.settings.model_dump(mode="json")
        for field in ("name", "seeds", "first_seed", "target"):
            del values["simulation"][field]
        text = orjson.dumps([__version__, seed, values], option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(text).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Experiment:
    """All arms, and the seeds that each runs with."""

    name: str
    arms: tuple[Arm, ...]
    seeds: range


def load_experiment(path: Path, overrides: Mapping[str, object] | None = None) -> Experiment:
    """The experiment of a file; `overrides` are settings of all arms by full name, and win.

    Raises:
        ConfigError: Something in it makes no sense, with the arm and the setting.
    """
    values = read_toml(path)
    arms, sweep = values.pop(_ARMS, {}), values.pop(_SWEEP, {})
    return make_experiment(values, arms, sweep, overrides)


def make_experiment(
    values: Mapping[str, Any],
    arms: Any = None,
    sweep: Mapping[str, Any] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Experiment:
    """The experiment of these values. See `load_experiment`."""
    overrides = overrides or {}
    common = _validated(_laid_over(values, overrides), "")
    if not isinstance(arms, Mapping | None) or not all(isinstance(arm, Mapping) for arm in (arms or {}).values()):
        raise ConfigError("arms: each is a table, as in [arms.patient]")
    found = []
    for name, changes in (arms or {common.simulation.name: {}}).items():
        for suffix, swept in _swept(_flat(sweep or {})):
            chosen = {**_flat(changes), **swept}
            where = f"arms.{name}: " if arms else ""
            settings = _validated(_laid_over(values, {**chosen, **overrides}), where)
            found.append(Arm(f"{name}{suffix}", settings, chosen))
            if len(found) > _MOST_ARMS:
                raise ConfigError(f"sweep: more than {_MOST_ARMS} arms")
    own = common.simulation
    return Experiment(own.name, tuple(found), range(own.first_seed, own.first_seed + own.seeds))


def _flat(table: Mapping[str, Any]) -> dict[str, object]:
    """Settings by full name, whether they were written as `a.b = 1` or as tables."""
    found: dict[str, object] = {}
    for section, fields in table.items():
        if isinstance(fields, Mapping) and "." not in section:
            found |= {f"{section}.{field}": value for field, value in fields.items()}
        else:
            found[section] = fields
    return found


def _swept(sweep: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    lists = []
    for name, several in sweep.items():
        if not isinstance(several, list) or not several:
            raise ConfigError(f"sweep.{name}: a list of values, of one at least")
        lists.append([(name, one) for one in several])
    for chosen in product(*lists):
        suffix = "".join(f" {name.partition('.')[2]}={value}" for name, value in chosen)
        yield suffix, dict(chosen)


def _laid_over(values: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    found = {name: dict(section) if isinstance(section, Mapping) else section for name, section in values.items()}
    for name, value in changes.items():
        section, dot, field = name.partition(".")
        below = found.setdefault(section, {})
        if not dot or not isinstance(below, dict):
            raise ConfigError(f"{name}: there is no such setting{did_you_mean(name, RUN_NAMES)}")
        below[field] = value
    return found


def _validated(values: Mapping[str, Any], where: str) -> RunSettings:
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(where + explain(error, RUN_NAMES).replace("\n", f"\n{where}")) from None
