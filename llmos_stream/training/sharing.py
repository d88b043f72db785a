"""Which tensors of a model are shared, and how a set of them is put back.

Only floating point tensors are ever shared: parameters, and buffers that are part of the state dict
(batch-norm statistics). Integer buffers such as `num_batches_tracked` are not averaged, and buffers
that are not persistent are not state. Of parameters travels what training changed, of buffers their values. Tied
tensors are one, under the first of their names. Names are those of the plain model (see `wrappers`).

Tensors of other kinds (complex, sparse, expanded and so on) cannot travel. Where nobody trains them they stay as they
are; where `requires_grad` says that they are trained, they are refused by name.

| share | what it takes |
| --- | --- |
| `all` | every tensor above |
| `trainable` | parameters with `requires_grad`, and no buffer: batch-norm statistics stay local |
| `adapters` | parameters with `lora_` or `adapter` in their name |
| `no-norm` | all but the parameters and buffers of normalisation layers (FedBN, Li et al. 2021) |
| anything else | globs on names, separated by commas: `encoder.*,head.weight`; `*` crosses dots |

`adapters` shares LoRA's A and B as two tensors, and the average of A times the average of B is not the
average of BA. To share exactly what is averaged, freeze A (it is the same everywhere, being part of the
initial model) and share `*lora_B*` (FFA-LoRA, Sun et al. 2024).
"""

import re
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from llmos_stream.codec import Layout
from llmos_stream.codec.layout import DTYPES
from llmos_stream.errors import TaskError
from llmos_stream.training.states import is_writable
from llmos_stream.training.wrappers import plain_name

_ADAPTER_MARKS = ("lora_", "adapter")
_NORM_CLASS = re.compile(r"Norm([123]d)?$")
_NAMES_IN_ERROR = 5
_OF_MODELS = frozenset({"all", "trainable", "adapters", "no-norm"})


@dataclass(frozen=True, slots=True)
class _Candidate:
    names: tuple[str, ...]  # more than one where parameters are tied
    tensor: Tensor
    is_parameter: bool
    in_norm: bool
    problem: str | None  # why it cannot travel

    def matches(self, pattern: str) -> bool:
        return any(fnmatchcase(name, pattern) for name in self.names)


def shared_tensors(model: nn.Module, share: str) -> dict[str, Tensor]:
    """The live tensors of `model` that `share` names, in the order of its state dict.

    The tensors are detached but share the model's memory: writing to them in place changes the model, and
    training changes them. They go stale when the model's tensors are replaced (`model.to(...)`), so move
    the model first.

    Raises:
        TaskError: Nothing matches, or one of several globs matches nothing, or a tensor that is trained cannot travel.
    """
    return {item.names[0]: item.tensor.detach() for item in _chosen(model, share)}


def trained_parameters(model: nn.Module, share: str) -> list[Tensor]:
    """The parameters of `shared_tensors` that are trained, themselves."""
    return [item.tensor for item in _chosen(model, share) if item.is_parameter and item.tensor.requires_grad]


def shared_layout(model: nn.Module, share: str) -> Layout:
    """The layout of `shared_tensors`, which tells parameters from buffers and knows all names of tied tensors."""
    chosen = _chosen(model, share)
    buffers = [item.names[0] for item in chosen if not item.is_parameter]
    tied = {further: item.names[0] for item in chosen for further in item.names[1:]}
    return Layout.of({item.names[0]: item.tensor for item in chosen}, buffers, tied)


def named_by(share: str, names: Collection[str]) -> list[str]:
    """Those of some arrays' names that `share` takes, where there is no model: all, but for globs.

    Raises:
        TaskError: One of the globs matches nothing.
    """
    if share in _OF_MODELS:
        return list(names)
    patterns = _patterns(share)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TaskError(
                f"task.share: {pattern!r} matches no floating point array, but there are {', '.join(names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _chosen(model: nn.Module, share: str) -> list[_Candidate]:
    candidates = list(_candidates(model))
    match share:
        case "all":
            chosen = candidates
        case "trainable":
            chosen = [item for item in candidates if item.is_parameter and item.tensor.requires_grad]
        case "adapters":
            chosen = [item for item in candidates if item.is_parameter and _is_adapter(item)]
        case "no-norm":
            chosen = [item for item in candidates if not item.in_norm]
        case _:
            chosen = _matching(candidates, share)
    for item in chosen:
        if item.problem is not None and (item.tensor.requires_grad or is_lazy(item.tensor)):
            raise TaskError(f"task.share: {item.names[0]} cannot be shared: it {item.problem}")
    chosen = [item for item in chosen if item.problem is None]
    if not chosen:
        raise TaskError(f"task.share: {share!r} matches no tensor of the model, which has {_some_names(candidates)}")
    return chosen


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    owners = {
        id(tensor): module
        for module in model.modules()
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    names: dict[Hashable, list[str]] = {}
    tensors: dict[Hashable, Tensor] = {}
    # keep_vars: the very parameters, so that their owners are known by identity.
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in owners and (tensor.is_floating_point() or tensor.is_complex()):
            key = _memory(tensor)
            names.setdefault(key, []).append(plain_name(model, name))
            tensors.setdefault(key, tensor)
    for key, tensor in tensors.items():
        in_norm = is_norm(owners[id(tensor)])
        yield _Candidate(tuple(names[key]), tensor, isinstance(tensor, nn.Parameter), in_norm, why_not_shared(tensor))
    held = {id(tensor) for tensor in tensors.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in held and _memory(parameter) not in tensors:
            yield _Candidate((plain_name(model, name),), parameter, True, False, "is not in the model's state dict")


def _memory(tensor: Tensor) -> Hashable:
    """What two tensors have in common that are one: parameters may be tied by their memory alone."""
    if is_lazy(tensor) or not is_writable(tensor) or tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def why_not_shared(tensor: Tensor) -> str | None:
    """Why a tensor cannot travel, as the end of a sentence about it; None where it can."""
    if is_lazy(tensor):
        return "is a lazy parameter without a shape; run a batch through the model first"
    if tensor.is_complex():
        return f"is complex ({_short(tensor.dtype)}); hold it as real numbers, with torch.view_as_complex in `forward`"
    if tensor.is_nested:
        return "is a nested tensor; hold it as one padded tensor"
    if tensor.layout is not torch.strided:
        return f"is sparse ({_short(tensor.layout)}); hold its values as a dense parameter, or freeze it"
    if _short(tensor.dtype) not in DTYPES:
        return f"is of dtype {_short(tensor.dtype)}, not one of {', '.join(DTYPES)}"
    if tensor.is_meta:
        return "is on the meta device and has no values; give the model memory first (`model.to_empty`) and weights"
    if not is_writable(tensor):
        return "is expanded, so that several of its elements are one; hold it before `expand`, or a copy (`clone`)"
    return None


def _short(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")


def is_norm(module: nn.Module) -> bool:
    """Whether it is a layer of normalisation."""
    # By the names of the classes it derives from: torch's own, and the RMSNorm that each model library writes anew.
    return any(_NORM_CLASS.search(base.__name__) for base in type(module).__mro__)


def _is_adapter(item: _Candidate) -> bool:
    return any(mark in name for name in item.names for mark in _ADAPTER_MARKS)


def _matching(candidates: list[_Candidate], share: str) -> list[_Candidate]:
    patterns = _patterns(share)
    for pattern in patterns:
        if not any(item.matches(pattern) for item in candidates):
            raise TaskError(
                f"task.share: {pattern!r} matches no tensor of the model, which has {_some_names(candidates)}"
            )
    return [item for item in candidates if any(item.matches(pattern) for pattern in patterns)]


def _patterns(share: str) -> list[str]:
    return [pattern for pattern in (part.strip() for part in share.split(",")) if pattern]


def _some_names(candidates: list[_Candidate]) -> str:
    names = [item.names[0] for item in candidates]
    more = f" and {len(names) - _NAMES_IN_ERROR} more" if len(names) > _NAMES_IN_ERROR else ""
    return ", ".join(names[:_NAMES_IN_ERROR]) + more if names else "no floating point tensors"
