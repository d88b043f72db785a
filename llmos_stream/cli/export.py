"""Weights as a safetensors file, whichever command makes them."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO

from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError

if TYPE_CHECKING:
    from llmos_stream.log.versions import Version
    from llmos_stream.registry import KeptVersion


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


def write_weights(version: "Version | KeptVersion", path: Path, metadata: Mapping[str, str]) -> int:
    """Write the weights under all names that the model's state dict has for them; return how many these are.

    Raises:
        ConfigError: The file cannot be written.
    """
    from llmos_stream.registry import file_pieces

    with _fresh(path) as file:
        for piece in file_pieces(version.weights, version.layout, metadata, whole=True):
            file.write(piece)
    return len(version.layout.tensors) + len(version.layout.tied)


def write_state(version: "KeptVersion", path: Path, metadata: Mapping[str, str], settings: Settings) -> int:
    """Write the state dict of the task's model with the weights of a version; return how many tensors it has.

    Raises:
        ConfigError: The file cannot be written, or the version is of another model.
        TaskError: The task makes no model.
    """
    from safetensors.torch import save

    from llmos_stream.training import load_task, shared_layout, state_with, task_errors
    from llmos_stream.training.differences import difference

    task = load_task(settings.task, settings.client)
    with task_errors(settings.task.entry):
        model = task.model()
    layout = shared_layout(model, task.share)
    if not layout.has_tensors_of(version.layout):
        raise ConfigError(
            f"task.entry, task.share: the model is not that of the version ({difference(layout, version.layout)})"
        )
    # Where a release before this one made it, it knows no tied tensors, and may have another order.
    weights = layout.flatten(version.layout.unflatten(version.weights))
    state = {name: tensor.contiguous().clone() for name, tensor in state_with(model, layout, weights).items()}
    with _fresh(path) as file:
        file.write(save(state, dict(metadata)))
    return len(state)


def check_folder(path: Path) -> None:
    """Look, before any work, whether `--to` can be made a folder.

    Raises:
        ConfigError: It cannot.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"--to: there is no folder {path.parent}")
    if path.exists():
        raise ConfigError(f"--to: {path} is there already")


def write_folder(
    version: "KeptVersion", path: Path, settings: Settings, *, merged: bool, rank: int | None
) -> tuple[int, float]:
    """Write a version of a language model as peft (or, `merged`, as transformers) loads it.

    Returns how many tensors it has, and its error (see `write_adapter`).

    Raises:
        ConfigError: The folder cannot be written, or the version is of another model.
        TaskError: The task makes no model.
    """
    from llmos_stream.training import load_task

    if settings.task.entry != "llm":
        raise ConfigError("--adapter, --merged: only versions of the task llm have these forms; set task.entry")
    load_task(settings.task, settings.client)  # says so where libraries are missing
    from llmos_stream.training.llm.versions import write_adapter, write_merged

    fresh = path.with_name(path.name + ".new")
    try:
        fresh.mkdir()
        if merged:
            made = write_merged(settings.task, version.layout, version.weights, fresh), 0.0
        else:
            made = write_adapter(settings.task, version.layout, version.weights, fresh, rank)
        fresh.rename(path)
    except OSError as error:
        raise ConfigError(f"--to: cannot write {path}: {error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return made


@contextmanager
def _fresh(path: Path) -> Iterator[BinaryIO]:
    """Write a file, all or nothing: when the work fails there is none.

    Raises:
        ConfigError: The file cannot be written.
    """
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            yield file
        fresh.replace(path)
    except OSError as error:
        raise ConfigError(f"--to: cannot write {path}: {error}") from None
    finally:
        fresh.unlink(missing_ok=True)
