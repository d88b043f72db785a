"""Reads settings from flags, environment and file, and hands them on to another process."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from llmos_stream.config.base import explain
from llmos_stream.config.presets import added_by_preset
from llmos_stream.config.settings import NAMES, SECTIONS, Settings
from llmos_stream.config.sources import CONFIG_VARIABLE, read_environment, read_file
from llmos_stream.errors import ConfigError


def load(
    overrides: Mapping[str, Any] | None = None,
    file: Path | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    reads_named: bool = True,
) -> Settings:
    """Read all settings; `overrides` (nested, by section) win, `file` defaults to `$LLMOS_CONFIG` if `reads_named`.

    `defaults` are a command's own, below all that a person says. A text that is empty counts as not given.

    Raises:
        ConfigError: Some fields are wrong; it lists each with the reason.
    """
    values: dict[str, Any] = {}
    for layer in _layers(overrides, file, defaults, reads_named=reads_named).values():
        _lay_over(values, layer)
    return _validated(values)


def origins(
    overrides: Mapping[str, Any] | None = None,
    file: Path | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, str]:
    """Where `load` finds each setting (`section.field`): flag, variable, file, preset or command; else left out.

    Raises:
        ConfigError: A file or a variable cannot be read.
    """
    return {
        f"{section}.{field}": origin
        for origin, layer in _layers(overrides, file, defaults).items()
        for section, fields in layer.items()
        if isinstance(fields, Mapping)
        for field in fields
    }


def _layers(
    overrides: Mapping[str, Any] | None,
    file: Path | None,
    defaults: Mapping[str, Mapping[str, Any]] | None,
    *,
    reads_named: bool = True,
) -> dict[str, Mapping[str, Any]]:
    """What is said where, by section; the later wins."""
    named = os.environ.get(CONFIG_VARIABLE, "").strip() if reads_named else ""
    path = file or (Path(named) if named else None)
    by_person = {
        "file": {} if path is None else read_file(path),
        "variable": read_environment(os.environ),
        "flag": overrides or {},
    }
    said: dict[str, Any] = {}
    for layer in by_person.values():
        _lay_over(said, layer)
    return {"command": defaults or {}, "preset": added_by_preset(said), **by_person}


def settings_of(given: Settings | Mapping[str, Any] | Path | str | None, named: Mapping[str, Any]) -> Settings:
    """Settings as a program gives them: whole, some by section, or a file. What is `named`, and not None, wins.

    Raises:
        ConfigError: As `load` does.
    """
    overrides = {name: value for name, value in named.items() if value is not None}
    match given:
        case Settings():
            values = given.model_dump(exclude_unset=True)
            _lay_over(values, overrides)
            return _validated(values) if overrides else given
        case str() | Path():
            return load(overrides, Path(given))
        case Mapping() | None:
            return load({**(given or {}), **overrides})
        case _:
            raise ConfigError(f"settings: a mapping, a file or Settings, not {type(given).__name__}")


def _validated(values: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, NAMES)) from None


def _lay_over(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for name, value in layer.items():
        section, dot, field = str(name).partition(".")
        given = {field: value} if dot else value
        if isinstance(given, Mapping):
            given = {key: one for key, one in given.items() if not (isinstance(one, str) and not one.strip())}
            below = values.get(section)
            values[section] = {**below, **given} if isinstance(below, dict) else given
        else:
            values[section] = given


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings; secrets are left to its own environment."""
    return {
        f"LLMOS_{section}__{name}".upper(): json.dumps(dict(value)) if isinstance(value, Mapping) else str(value)
        for section in SECTIONS
        for name, value in getattr(settings, section)
        if value is not None and not isinstance(value, SecretStr)
    }
