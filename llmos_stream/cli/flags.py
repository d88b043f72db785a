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

from llmos_stream.config import SECTIONS
from llmos_stream.config.plugins import Kind

_DEST = "setting:"
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
    def flag(self) -> str:
        return f"--{self.section.replace('_', '-')}.{self.field.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"LLMOS_{self.section}__{self.field}".upper()


def settings_of(sections: Iterable[str] | None = None) -> Iterator[Setting]:
    """Every setting of the named sections (all by default), in the order of the code."""
    for section in SECTIONS if sections is None else sections:
        for name, field in SECTIONS[section].model_fields.items():
            secret = "SecretStr" in str(field.annotation)
            yield Setting(section, name, _kind_of(field), _default(field), field.description or "", secret)


def is_setting(dest: str) -> bool:
    """Whether an argument's destination is a setting's."""
    return dest.startswith(_DEST)


def add_settings(
    parser: argparse.ArgumentParser, sections: Iterable[str], defaults: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add `--config` and a group of flags a section. A secret has no flag: process lists show flags.

    `defaults` are shown in place of the general ones.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML); default $LLMOS_CONFIG")
    for section in sections:
        group = parser.add_argument_group(f"settings: {section}")
        for setting in settings_of([section]):
            if not setting.secret:
                default = defaults.get(section, {}).get(setting.field, setting.default)
                fits = len(setting.kind) <= _KIND_CHARACTERS
                values = "" if fits else f"One of {setting.kind.replace('|', ', ')}. "
                text = f"{values}{setting.text} (default: {default})".replace("%", "%%")
                dest = f"{_DEST}{section}.{setting.field}"
                kind = setting.kind if fits else "NAME"
                group.add_argument(setting.flag, dest=dest, metavar=kind, default=None, help=text)


def given_settings(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What flags alone say, by section and field, not validated yet."""
    given: dict[str, dict[str, Any]] = {}
    for dest, value in vars(arguments).items():
        if is_setting(dest) and value is not None:
            section, field = dest.removeprefix(_DEST).split(".")
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
        return _kind(next(part for part in get_args(annotation) if part is not type(None)))
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
