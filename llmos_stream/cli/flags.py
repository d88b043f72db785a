"""A flag for every setting: `--section.field VALUE`, made from the settings themselves."""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llmos_stream.config import SECTIONS, Section, did_you_mean, expanded
from llmos_stream.config.plugins import Kind

_DEST = "setting:"
_SHORT = {"federation.preset": "--preset", "aggregator.init": "--init", "aggregator.init_from": "--init-from"}
_KIND_CHARACTERS = 48  # a longer list of values would not fit beside its flag


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as a person sees it."""

    section: str
    field: str
    kind: str
    default: str
    text: str
    secret: bool

    @property
    def name(self) -> str:
        return f"{self.section}.{self.field}"

    @property
    def flag(self) -> str:
        return f"--{self.section.replace('_', '-')}.{self.field.replace('_', '-')}"

    @property
    def flags(self) -> tuple[str, ...]:
        """With the short one before it, where there is one."""
        return (*([_SHORT[self.name]] if self.name in _SHORT else []), self.flag)

    @property
    def variable(self) -> str:
        return f"LLMOS_{self.section}__{self.field}".upper()


def settings_of(
    sections: Iterable[str] | None = None, known: Mapping[str, type[Section]] = SECTIONS
) -> Iterator[Setting]:
    """Every setting of the named sections (all that are `known` by default), in the order of the code."""
    for section in known if sections is None else sections:
        for name, field in known[section].model_fields.items():
            secret = "SecretStr" in str(field.annotation)
            yield Setting(section, name, _kind_of(field), _default(field), field.description or "", secret)


def setting_of(dest: str) -> str | None:
    """The setting, as `section.field`, that an argument's destination stands for."""
    return dest.removeprefix(_DEST) if dest.startswith(_DEST) else None


def file_path(text: str) -> Path | None:
    """A file that an argument names, with `~` expanded; None where it is empty, as for settings."""
    try:
        return expanded(Path(text)) if text.strip() else None
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_settings(
    parser: argparse.ArgumentParser, sections: Iterable[str], defaults: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add `--config` and a group of flags a section. A secret has no flag: process lists show flags.

    `defaults` are shown in place of the general ones.
    """
    parser.add_argument("--config", type=file_path, metavar="FILE", help="settings file (TOML); default $LLMOS_CONFIG")
    for section in sections:
        group = parser.add_argument_group(f"settings: {section}")
        for setting in settings_of([section]):
            if not setting.secret:
                default = defaults.get(section, {}).get(setting.field, setting.default)
                fits = len(setting.flags) * len(setting.kind) <= _KIND_CHARACTERS  # each flag is shown with it
                values = "" if fits else f"One of {setting.kind.replace('|', ', ')}. "
                text = f"{values}{setting.text} (default: {default})".replace("%", "%%")
                dest = f"{_DEST}{section}.{setting.field}"
                kind = setting.kind if fits else "NAME"
                group.add_argument(*setting.flags, dest=dest, metavar=kind, default=None, help=text)


def explain_unknown(flag: str, command: str, flags: Iterable[str]) -> str:
    """What to do about a flag that a command, which has these `flags`, does not know; may be nothing."""
    setting = next((setting for setting in settings_of() if setting.flag == flag), None)
    if setting is None:
        return did_you_mean(flag, flags)
    return f"; a secret has no flag: set {setting.variable}" if setting.secret else f"; {command} does not use it"


def given_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What flags alone say, by section and field, not validated yet."""
    given: dict[str, dict[str, Any]] = {}
    for dest, value in vars(arguments).items():
        if (setting := setting_of(dest)) and value is not None:
            section, field = setting.split(".")
            given.setdefault(section, {})[field] = _parsed(section, field, value)
    return given


def _parsed(section: str, field: str, value: str) -> object:
    """The flag's text, except that `none` unsets a setting that may be unset."""
    optional = type(None) in get_args(SECTIONS[section].model_fields[field].annotation)
    return None if optional and value.lower() == "none" else value


def _kind_of(field: FieldInfo) -> str:
    for known in field.metadata:
        if isinstance(known, Kind):
            return "|".join((*known.built_in, "NAME"))
    return _kind(field.annotation)


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if origin in (Union, UnionType):
        return "|".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if hasattr(annotation, "__metadata__"):
        return _kind(get_args(annotation)[0])
    if origin is Mapping:
        return "NAME=VALUE,..."
    return {str: "TEXT", int: "INT", float: "NUMBER", bool: "true|false", Path: "PATH", SecretStr: "SECRET"}.get(
        annotation, "VALUE"
    )


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default == {}:
        return "none"
    return "unset" if field.default is None else str(field.default)
