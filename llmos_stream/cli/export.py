"""Weights as a safetensors file, whichever command makes them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from llmos_stream.errors import ConfigError

if TYPE_CHECKING:
    from llmos_stream.log import Version


def check_target(path: Path) -> None:
    """Look, before any work, whether `--to` can be written.

    Raises:
        ConfigError: It cannot.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--to: there is no folder {path.parent}")
    check_page("--to", path)


def check_page(flag: str, path: Path) -> None:
    """Look, before any work, whether a page can be written, in a folder that may have to be made for it.

    Raises:
        ConfigError: It cannot.
    """
    if path.is_dir():
        raise ConfigError(f"{flag}: {path} is a folder")
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        if path.exists():
            path.open("ab").close()
        else:
            TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"{flag}: cannot write {path}: {error.strerror}") from None


def write_weights(version: "Version", path: Path, metadata: Mapping[str, str]) -> int:
    """Write the weights by tensor name, and return how many tensors there are. Raises as `write_file` does."""
    from llmos_stream.registry import file_pieces

    write_file(file_pieces(version.weights, version.layout, metadata), path)
    return len(version.layout.tensors)


def write_file(pieces: Iterable[bytes | memoryview], path: Path) -> None:
    """Write a file, all or nothing: when `pieces` fail there is none.

    Raises:
        ConfigError: The file cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"--to: cannot write {path}: {error}") from None
    finally:
        fresh.unlink(missing_ok=True)
