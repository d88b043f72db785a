"""What a model holds of one site alone: what training changes and `task.share` leaves out.

A head of one's own (FedPer, Arivazhagan et al. 2019; FedRep, Collins et al. 2021) with `share = "body.*"`, or
normalisation layers of one's own (FedBN, Li et al. 2021) with `share = "no-norm"`. Frozen parameters are not among it:
the task makes them the same everywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from llmos_stream.errors import ConfigError
from llmos_stream.training.sharing import is_norm, shared_layout, trained_parameters
from llmos_stream.training.states import is_writable, load_, state_of
from llmos_stream.training.task import Task
from llmos_stream.training.wrappers import plain_name

_NAMES_IN_ERROR = 3


def personal_tensors(model: nn.Module, share: str) -> dict[str, Tensor]:
    """The live tensors that are a site's own, by plain name: trained parameters, and all buffers that are state.

    None where there are only counters. Complex and sparse tensors are left out: no file keeps them.
    """
    layout = shared_layout(model, share)
    shared = {spec.name for spec in layout.tensors} | layout.tied.keys()
    left_out = shared | _parameters(model, trained=False)
    found = {
        name: tensor
        for name, tensor in state_of(model).items()
        if name not in left_out and is_writable(tensor) and not tensor.is_complex()
    }
    return found if any(tensor.is_floating_point() for tensor in found.values()) else {}


def personal_names(model: nn.Module, share: str) -> list[str]:
    """Which tensors only a site's training gives a meaning: trained parameters, and statistics of normalisation."""
    learnt = _parameters(model, trained=True) | {
        plain_name(model, f"{place}.{name}".lstrip("."))
        for place, module in model.named_modules()
        if is_norm(module)
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
    return [name for name in personal_tensors(model, share) if name in learnt]


@contextmanager
def training_only(model: nn.Module, share: str, *, own: bool) -> Iterator[None]:
    """Within the block, freeze what is shared (`own`), or what is a site's own."""
    shared = {id(parameter) for parameter in trained_parameters(model, share)}
    frozen = [one for one in model.parameters() if one.requires_grad and (id(one) in shared) is own]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def check_head_epochs(model: nn.Module, share: str) -> None:
    """Raise ConfigError where `client.head_epochs` would find nothing to train."""
    shared = {id(parameter) for parameter in trained_parameters(model, share)}
    if all(id(one) in shared for one in model.parameters() if one.requires_grad):
        raise ConfigError(
            f"client.head_epochs: with task.share {share!r} no trained parameter of the model is a site's own; "
            "name what is shared, such as body.*, or leave it 0"
        )


def some_of(names: Sequence[str]) -> str:
    """The first of the names, and how many there are beside."""
    more = f" and {len(names) - _NAMES_IN_ERROR} more" if len(names) > _NAMES_IN_ERROR else ""
    return ", ".join(names[:_NAMES_IN_ERROR]) + more


def load_personal(model: nn.Module, share: str, kept: Mapping[str, Tensor]) -> None:
    """Copy a site's own tensors into a model, in place.

    Raises:
        TaskError: They are those of another model. Nothing was written then.
    """
    load_(personal_tensors(model, share), kept)


def make_personal(task: Task, share: str, kept: Mapping[str, Tensor]) -> None:
    """Let the task make each of its models with a site's own tensors. `model` raises as `load_personal` does then."""
    make = task.model

    def model() -> nn.Module:
        made = make()
        load_personal(made, share, kept)
        return made

    task.model = model  # type: ignore[method-assign]


def _parameters(model: nn.Module, *, trained: bool) -> set[str]:
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(model, name) for name, parameter in named if parameter.requires_grad is trained}
