"""Reads settings from flags, environment and file, and hands them on to another process."""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from llmos_stream.config.base import explain
from llmos_stream.config.settings import SECTIONS, Settings
from llmos_stream.errors import ConfigError

CONFIG_VARIABLE = "LLMOS_CONFIG"


def load(
    overrides: Mapping[str, Any] | None = None,
    file: Path | None = None,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> Settings:
    """Read all settings; `overrides` (nested, by section) win, `file` defaults to `$LLMOS_CONFIG`.

    `defaults` are a command's own, below all that a person says.

    Raises:
        ConfigError: Some fields are wrong; it lists each with the reason.
    """
    path = file or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    from_file = {} if path is None else _read(path)

    class Layered(Settings):
        _below: ClassVar[tuple[Mapping[str, Any], ...]] = (from_file, defaults or {})

    try:
        return Layered(**(overrides or {}))
    except (ValidationError, SettingsError) as error:
        raise ConfigError(explain(error)) from None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"settings file {path} does not exist")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from None


def to_environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings; secrets are left to its own environment."""
    return {
        f"LLMOS_{section}__{name}".upper(): json.dumps(dict(value)) if isinstance(value, Mapping) else str(value)
        for section in SECTIONS
        for name, value in getattr(settings, section)
        if value is not None and not isinstance(value, SecretStr)
    }
