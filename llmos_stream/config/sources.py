"""Where settings come from beside flags: the environment and a TOML file, as values by section and field."""

import json
import logging
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llmos_stream.config.base import expanded
from llmos_stream.config.names import did_you_mean
from llmos_stream.config.settings import NAMES, SECTIONS
from llmos_stream.errors import ConfigError

logger = logging.getLogger(__name__)

CONFIG_VARIABLE = "LLMOS_CONFIG"
_PREFIX = "LLMOS_"
_VARIABLES = {f"{_PREFIX}{name.replace('.', '__')}".upper(): name for name in NAMES}
_OTHERS = re.compile(rf"{CONFIG_VARIABLE}|LLMOS_IMAGE|LLMOS_TEST_\w+")
# What Kubernetes sets for each service of the namespace; one of them may be called llmos-something.
_SERVICE_LINK = re.compile(r"LLMOS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")

Values = dict[str, Any]


def read_environment(environ: Mapping[str, str]) -> Values:
    """The settings that variables give. One that is empty is not set: that is how compose files pass on what is unset.

    Raises:
        ConfigError: A variable looks like a setting and is none.
    """
    found: Values = {}
    for variable in sorted(environ, key=len):  # a whole section comes before its settings
        name, text = variable.upper(), environ[variable].strip()
        path = [part.lower() for part in name.removeprefix(_PREFIX).split("__")]
        if not text or not _is_ours(name, text):
            if text and f"{_PREFIX}{name}" in _VARIABLES:
                logger.warning("%s is not read; did you mean %s%s?", variable, _PREFIX, name)
            continue
        if not name.startswith(_PREFIX) or path[0] not in SECTIONS:
            _refuse(variable, name)
        elif len(path) == 1:
            found.setdefault(path[0], {}).update(_section(variable, text))
        else:
            _put(found, path, text)
    return found


def read_file(path: Path) -> Values:
    """The settings of a TOML file.

    Raises:
        ConfigError: As `read_toml`, and for sections inside tables that are none.
    """
    values = read_toml(path)
    for outer, section in _sections_below(values):
        raise ConfigError(f"settings file {path}: there is no section [{outer}.{section}]; did you mean [{section}]?")
    return values


def read_toml(path: Path) -> Values:
    """The values of a TOML file.

    Raises:
        ConfigError: There is no such file, it cannot be read, or it is not TOML in UTF-8.
    """
    try:
        data = expanded(path).read_bytes()
    except ValueError as error:
        raise ConfigError(f"settings file {path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"settings file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"settings file {path}: {error.strerror or error}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        raise ConfigError(f"settings file {path} is not UTF-8 but UTF-16 or UTF-32; save it as UTF-8")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"settings file {path} is not UTF-8 (line {line}); save it as UTF-8") from None
    except RecursionError:
        raise ConfigError(f"settings file {path} is nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError; or an integer of thousands of digits
        raise ConfigError(f"settings file {path} is not TOML: {str(error).partition('; use sys')[0]}") from None


def _is_ours(name: str, text: str) -> bool:
    """Whether a variable is one that this package is to understand."""
    if _OTHERS.fullmatch(name) or _SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and "://" in text):
        return False
    return name.startswith(_PREFIX) or ("__" in name and _has_a_prefix_like_ours(name))


def _has_a_prefix_like_ours(name: str) -> bool:
    letters = re.sub("[^A-Z]", "", name)
    if letters.startswith("LLMOS"):
        return True
    known = next((known for known in _VARIABLES if name.endswith(known.removeprefix("LLMOS"))), None)
    prefix = name.removesuffix(known.removeprefix("LLMOS")) if known else ""
    return bool(get_close_matches(re.sub("[^A-Z]", "", prefix), ("LLMOS", "LLMOSSTREAM"), cutoff=0.75))


def _refuse(variable: str, name: str) -> None:
    hint = did_you_mean(name, [*_VARIABLES, CONFIG_VARIABLE])
    if hint or "__" in name:
        raise ConfigError(f"{variable}: there is no such setting{hint or '; llmos-stream settings lists them'}")
    logger.warning("%s is no setting and is not read; llmos-stream settings lists them", variable)


def _section(variable: str, text: str) -> Values:
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        field = next(iter(SECTIONS[variable.upper().removeprefix(_PREFIX).lower()].model_fields))
        raise ConfigError(f"{variable}: a section is a JSON object; one of its settings is {variable}__{field.upper()}")
    return values


def _put(found: Values, path: list[str], text: str) -> None:
    """Put a text where its path says. One below a setting is an option of that: LLMOS_AGGREGATION__OPTIONS__BETA."""
    *outer, last = path
    for name in outer:
        inner = found.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{_PREFIX}{'__'.join(path).upper()}: {'.'.join(outer)} is given as a whole as well")
        found = inner
    found[last] = text if len(outer) < 2 else _option(text)


def _option(text: str) -> Any:
    """A number where it is one, and so on, as in `name=value,name=value`."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sections_below(values: Values, outer: str = "") -> Iterator[tuple[str, str]]:
    """Known sections inside tables that are none, such as [tool.llmos.codec], with the table's name."""
    for name, value in values.items():
        if isinstance(value, dict) and (outer or name not in SECTIONS):
            if outer and name in SECTIONS:
                yield outer, name
            yield from _sections_below(value, f"{outer}.{name}".removeprefix("."))
