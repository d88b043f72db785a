"""What a setting may name beside what is built in: an installed package's entry point, or `package.module:callable`.

A name is looked up because this machine's own settings say it, or because a version's rule records it; the second may
name an entry point alone, whose package somebody has installed here. No message makes this import a module.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from llmos_stream.config.base import Section, explain
from llmos_stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of rule that is open: what it is called, the group of its entry points, and what is built in."""

    noun: str
    group: str
    built_in: tuple[str, ...]


STRATEGIES = Kind(
    "strategy",
    "llmos_stream.strategies",
    ("fedbuff", "fedavg", "fedasync", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound", "fednova"),
)
STALENESS = Kind("staleness function", "llmos_stream.staleness", ("constant", "polynomial", "hinge"))
SERVER_OPTIMIZERS = Kind(
    "server optimiser",
    "llmos_stream.server_optimizers",
    ("sgd", "adam", "yogi", "adagrad", "fadas", "delayed_nesterov"),
)
STOP_RULES = Kind("stop rule", "llmos_stream.stop_rules", ("standard",))
CODECS = Kind("codec", "llmos_stream.codecs", ("float32", "float16", "bfloat16", "int8", "int4", "topk", "topk2"))


@dataclass(frozen=True, slots=True)
class Package:
    """The distribution that something comes from."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """What a name stands for. `package` is None for what is built in and for a module that belongs to no distribution.

    The target is called with its options and then with what its kind is given; `target.Options` is their pydantic
    model, where it takes any.
    """

    target: Callable[..., Any]
    package: Package | None

    def options(self, given: Mapping[str, Any]) -> BaseModel:
        """The options as the target's model has them. Raises ValueError for any that it does not take."""
        model: type[BaseModel] = getattr(self.target, "Options", NoOptions)
        try:
            return model.model_validate(dict(given))
        except ValidationError as error:
            raise ValueError(explain(error, model.model_fields)) from None


class NoOptions(Section):
    """The options of a rule that has none."""


def is_path(name: str) -> bool:
    """Whether `name` is a `package.module:callable`."""
    module, _, attribute = name.partition(":")
    return bool(module and attribute)


def find_plugin(kind: Kind, built_in: Mapping[str, Callable[..., Any]], name: str) -> Plugin:
    """What `name` stands for, in local settings or, as long as it is no path, in a record. It is imported.

    What is built in cannot be replaced by a package. Raises ConfigError when nothing of that name is installed (the
    message says what comes near) or when it cannot be imported.
    """
    if name in built_in:
        return Plugin(built_in[name], None)
    if is_path(name):
        return _by_path(name)
    found = _entry_points(kind.group).get(name)
    if found is None:
        raise ConfigError(_unknown(kind, name))
    return _loaded(kind, found)


def installed_plugins(kind: Kind) -> Mapping[str, Plugin | ConfigError]:
    """Everything that packages bring of a kind, by name, or why it cannot be imported."""
    found: dict[str, Plugin | ConfigError] = {}
    for name, entry in sorted(_entry_points(kind.group).items()):
        try:
            found[name] = _loaded(kind, entry)
        except ConfigError as error:
            found[name] = error
    return found


def _loaded(kind: Kind, found: EntryPoint) -> Plugin:
    try:
        target = found.load()
    except Exception as error:
        raise ConfigError(f"{kind.noun} {found.name} ({found.value}): {type(error).__name__}: {error}") from error
    return Plugin(target, None if found.dist is None else Package(found.dist.name, found.dist.version))


def check_installed(kind: Kind, name: str) -> str:
    """`name`, if it is built in or a package brings it, which is not imported for that.

    Raises:
        ValueError: It is neither.
    """
    if name not in kind.built_in and name not in _entry_points(kind.group):
        raise ValueError(_unknown(kind, name))
    return name


def import_path(path: str) -> Callable[..., Any]:
    """The callable that `package.module:callable` names: from this machine's settings, never from a message.

    Raises ConfigError.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not _is_absent(module_name, error):
            raise
        module = _import_from_here(module_name)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise ConfigError(f"module {module_name} ({_where(module)}) has no {attribute}") from None
    if not callable(found):
        raise ConfigError(f"{attribute} is a {type(found).__name__}, not a callable")
    return found  # type: ignore[no-any-return]


def _where(module: ModuleType) -> str:
    """The file: a module of another package may have the name that was meant for one's own."""
    return getattr(module, "__file__", None) or "built in"


def _is_absent(module_name: str, error: ModuleNotFoundError) -> bool:
    """Whether it is the module that is not there, and not one that it imports."""
    return error.name is not None and f"{module_name}.".startswith(f"{error.name}.")


def _import_from_here(module_name: str) -> ModuleType:
    """Import from the current folder, which a program has on its path only if it is run by `python -m`."""
    here = str(Path.cwd())
    sys.path.append(here)
    invalidate_caches()
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        sys.path.remove(here)
        if not _is_absent(module_name, error):
            raise
        raise ConfigError(
            f"there is no module {error.name} (looked in the current folder too); is its folder on PYTHONPATH?"
        ) from error


@cache
def _by_path(path: str) -> Plugin:
    try:
        target = import_path(path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    names = packages_distributions().get(path.partition(".")[0].partition(":")[0], [])
    return Plugin(target, Package(names[0], version(names[0])) if names else None)


def _entry_points(group: str) -> Mapping[str, EntryPoint]:
    return _found_on(tuple(sys.path), group)


@cache
def _found_on(path: tuple[str, ...], group: str) -> Mapping[str, EntryPoint]:
    """Reads what every installed package says of itself, so it is done once a path."""
    return {found.name: found for found in entry_points(group=group)}


def _unknown(kind: Kind, name: str) -> str:
    known = [*kind.built_in, *sorted(_entry_points(kind.group).keys() - set(kind.built_in))]
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    paths = "" if kind is CODECS else ", and package.module:callable"
    return f"no {kind.noun} {name!r} is installed; {hint}there are {', '.join(known)}{paths}"
