"""A site's own part of the model, which is not shared, in its state folder.

personal.safetensors    the tensors by name, replaced atomically after each training
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from llmos_stream.errors import StateError, TaskError
from llmos_stream.storage import durable
from llmos_stream.training.personal import load_personal, personal_tensors

_FILE = "personal.safetensors"


class PersonalFile:
    """The file of a state folder; nothing is kept where `folder` is None."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / _FILE

    @property
    def is_kept(self) -> bool:
        """Whether there is a folder for it."""
        return self._path is not None

    def restore(self, load: Callable[[dict[str, Tensor]], None]) -> None:
        """Hand `load` what was kept; do nothing where nothing was. It raises TaskError where that does not fit.

        Raises:
            StateError: The file is damaged, or of another model.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            load(_read(self._path))
        except TaskError as error:
            raise StateError(
                f"{self._path}: {error}; delete it to begin with what the task makes, or set client.state_dir"
            ) from None

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace it, unless there is nothing to keep.

        Raises:
            StateError: It cannot be written.
        """
        if self._path is None or not tensors:
            return
        # Each a copy: safetensors takes no two tensors of one memory.
        data = save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})
        try:
            durable.replace(self._path, data)
        except OSError as error:
            raise StateError(f"client.state_dir: {self._path} cannot be written: {error.strerror or error}") from error


class PersonalPart:
    """What `share` leaves to this site. Where `folder` is None, the model alone holds it."""

    def __init__(self, folder: Path | None, share: str) -> None:
        self._file = PersonalFile(folder)
        self._share = share

    def restore(self, model: nn.Module) -> None:
        """Copy what was kept into a new model. See `PersonalFile.restore`."""
        self._file.restore(lambda kept: load_personal(model, self._share, kept))

    def keep(self, model: nn.Module) -> None:
        """Write what the model holds of this site alone. See `PersonalFile.write`."""
        if self._file.is_kept:
            self._file.write(personal_tensors(model, self._share))


def read_personal(folder: Path) -> dict[str, Tensor]:
    """A site's own tensors, from its state folder, which may be in use.

    Raises:
        StateError: There are none, or the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        raise StateError(
            f"{folder} holds no part of a model: it is not the state folder of a client that has trained, "
            "or the federation shares all of the model (task.share)"
        )
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        # The file is mapped, and may be replaced.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(f"{path} is damaged ({error}); delete it to begin with what the task makes") from error
