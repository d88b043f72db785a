"""A pre-trained model and its tokenizer, from a folder (safetensors or GGUF), a GGUF file or the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from llmos_stream.errors import TaskError, install

_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Source:
    """What transformers loads: a folder or a name of the hub, and the GGUF file in it, where it is one."""

    place: str
    gguf: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` is told beside the place."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def source_of(model: str) -> Source:
    """Where the model is that the option `model` names.

    Raises:
        TaskError: It is a path at which nothing can be loaded, or a GGUF without the library for it.
    """
    path = Path(model).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _gguf(path)
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        if found and not (path / "config.json").exists():
            if len(found) > 1:
                raise TaskError(f"options.model: {path} holds {len(found)} GGUF files; name one of them")
            return _gguf(found[0])
        if not (path / "config.json").exists():
            raise TaskError(f"options.model: {path} holds neither a config.json nor a GGUF file")
        return Source(str(path))
    if path.is_absolute() or model.startswith(("./", "../", "~")) or path.exists():
        raise TaskError(f"options.model: there is no folder and no GGUF file {path}")
    return Source(model)


def load_base(source: Source, dtype: torch.dtype) -> Any:
    """The model, for training or inference. Its weights are read from the file's own pages where they are of `dtype`.

    A private mapping: processes of one machine share these pages, and what is written to one becomes the writer's.
    """
    with quietly():
        if source.gguf is None and Path(source.place).is_dir() and not _has_weights(Path(source.place)):
            made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source.place), dtype=dtype)  # type: ignore[no-untyped-call]
        else:
            made = AutoModelForCausalLM.from_pretrained(source.place, dtype=dtype, **source.arguments)
    _forget_gguf(made)
    _map_weights(made, Path(source.place))
    made.config.use_cache = False
    return made


def load_tokenizer(source: Source) -> Any:
    """The model's tokenizer."""
    with quietly():
        return AutoTokenizer.from_pretrained(source.place, **source.arguments)


def _gguf(path: Path) -> Source:
    try:
        import gguf  # noqa: F401, PLC0415  # only these files need the extra
    except ImportError as error:
        raise TaskError(f"a GGUF file needs gguf ({error}); {install('gguf')}") from None
    return Source(str(path.parent), path.name)


def _has_weights(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _forget_gguf(model: Any) -> None:
    """The weights are plain numbers by now. What says that they are not keeps transformers from saving the model."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    model.is_quantized = False


def _map_weights(model: Any, folder: Path) -> None:
    """Let each parameter that a safetensors file holds just so be that part of the file."""
    if not folder.is_dir():
        return
    parameters = dict(model.named_parameters())
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            found = parameters.get(name)
            if found is not None and found.dtype == tensor.dtype and torch.equal(found.data, tensor):
                found.data = tensor


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars of transformers."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
