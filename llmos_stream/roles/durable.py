"""Files that survive a kill and a loss of power: on the disk before anything names them, replaced atomically."""

import os
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from llmos_stream.types import Part


def write_parts(path: Path, parts: Iterable[Part]) -> None:
    """Write a file; its bytes are on the disk, its name is once `sync_folder` returns."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def write_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """As `write_parts`, a safetensors file with one tensor."""
    save_file({name: tensor}, path)
    _sync(path)


def replace(path: Path, data: bytes) -> None:
    """Put `data` in the place of the file, with all that was written to its folder before: all of it or nothing."""
    fresh = path.with_suffix(".new")
    write_parts(fresh, [data])
    sync_folder(path.parent)
    fresh.replace(path)
    sync_folder(path.parent)  # or a loss of power brings the old file back


def sync_folder(folder: Path) -> None:
    """Names of new files in the folder are on the disk too."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
