"""Wrappers around a model, which are seen through: a wrapped model has the names of the plain one."""

from torch import nn

# By the names of their classes: importing them takes seconds, or a distributed build of torch.
_INNER = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "LanguageModel": "inner",  # of the task llm
}


def plain_name(model: nn.Module, name: str) -> str:
    """A name of `model`'s state dict without the steps that wrappers add, at whatever depth they are."""
    at: nn.Module | None = model
    kept = []
    for step in name.split("."):
        if at is None or step != _inner_name(at):
            kept.append(step)
        below = getattr(at, step, None)
        at = below if isinstance(below, nn.Module) else None
    return ".".join(kept)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers around the whole of it."""
    while (name := _inner_name(model)) is not None:
        model = getattr(model, name)
    return model


def _inner_name(module: nn.Module) -> str | None:
    return next((_INNER[base.__name__] for base in type(module).__mro__ if base.__name__ in _INNER), None)
