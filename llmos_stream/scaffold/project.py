"""Writing a project from a template: what it is called, and its files."""

import keyword
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

from llmos_stream.errors import ConfigError
from llmos_stream.scaffold.kinds import KINDS
from llmos_stream.scaffold.samples import write_samples

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FOLDER = Path(__file__).parent / "templates"
_WORDS = re.compile(r"\b(project|Project)\b")


@dataclass(frozen=True, slots=True)
class Project:
    """What was made: the folder, the module of the task in it, and all files."""

    folder: Path
    module: str
    template: str
    files: tuple[Path, ...]

    @property
    def sites(self) -> tuple[Path, ...]:
        """The sites' sample files."""
        return tuple(path for path in self.files if path.stem.startswith("site-"))


def make_project(path: Path, template: str) -> Project:
    """Make the folder `path` with a project in it, called as the folder is.

    Raises:
        ConfigError: The name cannot be used, or the folder is not empty or cannot be written.
    """
    name = _checked(path.name)
    module, kind = name.replace("-", "_").lower(), KINDS[template]
    if path.is_dir() and any(path.iterdir()):
        raise ConfigError(f"{path}: the folder is not empty; choose another name, or empty it first")
    words = {
        "name": name,
        "module": module,
        "class": "".join(part.capitalize() for part in module.split("_") if part),
        "suffix": kind.suffix,
        "about": f"A federation that learns from {kind.learns_from}, which stay at their sites.",
        "own": kind.own_data,
    }
    files = [
        (path / f"{module}.py", _coded(template, "project.py", words)),
        (path / f"test_{module}.py", _coded("common", "test_project.py", words)),
        (path / "llmos.toml", _filled(template, "llmos.toml", words)),
        (path / "README.md", _filled("common", "README.md", words)),
    ]
    try:
        (path / "data").mkdir(parents=True)
        for file, text in files:
            file.write_text(text, encoding="utf-8")
        samples = write_samples(template, path / "data")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    return Project(path, module, template, (*(file for file, _ in files), *samples))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        likely = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lstrip("0123456789-")[:64]
        hint = f"; did you mean {likely}?" if _NAME.fullmatch(likely) else ""
        raise ConfigError(f"{name!r} is no name of letters, digits, - and _ that begins with a letter{hint}")
    module = name.replace("-", "_").lower()
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or _is_installed(module):
        raise ConfigError(f"Python has a module {module} already; did you mean {name}-federation?")
    return name


def _is_installed(module: str) -> bool:
    """Whether a package of that name is installed, which would be found in place of the project's own module.

    What lies in the current folder is none (its virtual environment is), nor is a folder without a module, which has
    no origin.
    """
    found = find_spec(module)
    if found is None or found.origin is None:
        return False
    return Path.cwd() not in (Path(found.origin).parent, Path(found.origin).parent.parent)


def _coded(folder: str, name: str, words: Mapping[str, str]) -> str:
    """A file of Python, in which the words `project` and `Project` stand for the module and the class."""
    stands_for = {"project": words["module"], "Project": words["class"]}
    text = (_FOLDER / folder / name).read_text(encoding="utf-8")
    return _WORDS.sub(lambda found: stands_for[found[0]], text)


def _filled(folder: str, name: str, words: Mapping[str, str]) -> str:
    return Template((_FOLDER / folder / name).read_text(encoding="utf-8")).substitute(words)
