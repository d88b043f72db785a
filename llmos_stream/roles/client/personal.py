"""A site's own part of the model, which is not shared, in its state folder.

personal.safetensors    the tensors by name, replaced atomically after each training
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from llmos_stream.errors import StateError, TaskError
from llmos_stream.storage import durable
from llmos_stream.training.personal import load_personal, personal_tensors

_FILE = "personal.safetensors"


class PersonalPart:
    """What `share` leaves to this site. Where `folder` is None, the model alone holds it."""

    def __init__(self, folder: Path | None, share: str) -> None:
        self._path = None if folder is None else folder / _FILE
        self._share = share

    def restore(self, model: nn.Module) -> None:
        """Copy what was kept into a new model; do nothing where nothing was.

        Raises:
            StateError: The file is damaged, or of another model.
        """
        if self._path is None or not self._path.exists():
            return
        try:
            load_personal(model, self._share, _read(self._path))
        except TaskError as error:
            raise StateError(
                f"{self._path}: {error}; delete it to begin with what the task makes, or set client.state_dir"
            ) from None

    def keep(self, model: nn.Module) -> None:
        """Write what the model holds of this site alone.

        Raises:
            StateError: It cannot be written.
        """
        if self._path is None or not (tensors := personal_tensors(model, self._share)):
            return
        # Each a copy: safetensors takes no two tensors of one memory.
        data = save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()})
        try:
            durable.replace(self._path, data)
        except OSError as error:
            raise StateError(f"client.state_dir: {self._path} cannot be written: {error.strerror or error}") from error


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
