"""Weights as a safetensors file, whichever command makes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_stream.errors import ConfigError

if TYPE_CHECKING:
    from llmos_stream.roles import Version


def check_target(path: Path) -> None:
    """Raise ConfigError, before any work, where `--to` cannot be written."""
    if not path.parent.is_dir():
        raise ConfigError(f"--to: there is no folder {path.parent}")


def write_weights(version: "Version", path: Path, metadata: Mapping[str, str]) -> int:
    """Write the weights by tensor name, all or nothing. Returns how many tensors. Raises ConfigError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # safetensors wants tensors of their own, laid out densely, not views of one vector.
    tensors = {name: tensor.contiguous().clone() for name, tensor in version.layout.unflatten(version.weights).items()}
    fresh = path.with_name(path.name + ".new")
    try:
        save_file(tensors, fresh, metadata=dict(metadata))
        fresh.replace(path)
    except (OSError, SafetensorError) as error:  # the latter where safetensors itself cannot write
        fresh.unlink(missing_ok=True)
        raise ConfigError(f"--to: cannot write {path}: {error}") from None
    return len(tensors)
