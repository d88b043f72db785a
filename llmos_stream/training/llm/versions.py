"""Versions of a language model as other programs use them: in memory, as a folder for peft, or merged into the base.

adapter_config.json, adapter_model.safetensors      `peft.PeftModel.from_pretrained(base, folder)`
config.json, model.safetensors, tokenizer ...       `AutoModelForCausalLM.from_pretrained(folder)`
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from llmos_stream.codec import Layout
from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import ConfigError
from llmos_stream.training.differences import difference
from llmos_stream.training.llm.adapters import NAME, adapted_layers, peft_config
from llmos_stream.training.llm.base import quietly
from llmos_stream.training.llm.task import LlmTask
from llmos_stream.training.loading import load_task
from llmos_stream.training.sharing import shared_layout
from llmos_stream.training.wrappers import plain_name

_PREFIX = "base_model.model."


class VersionedModel:
    """The base model, once in memory, with its tokenizer; it is given the weights of one version after the other.

    `model` is that of transformers: it answers by `model.generate`. Not for two threads at once.

    Raises:
        TaskError: The task or its model cannot be made.
    """

    def __init__(self, settings: TaskSettings, make: Callable[[], nn.Module] | None = None) -> None:
        """`make` makes the task's model; None: the task itself."""
        task = LlmTask(settings, ClientSettings())
        made = (make or load_task(settings, task.client).model)().eval().requires_grad_(False)
        self.options = task.llm
        self.tokenizer = task.tokenizer
        self.model: Any = made.inner
        self._layout = shared_layout(made, task.share)
        live = {plain_name(made, name): one for name, one in made.state_dict(keep_vars=True).items()}
        self._shared: dict[str, Tensor] = {spec.name: live[spec.name] for spec in self._layout.tensors}

    def hold(self, layout: Layout, weights: Tensor) -> Mapping[str, Tensor]:
        """Copy the weights of a version, which are flat, for `use`. Another thread may use others meanwhile.

        Raises:
            ConfigError: They are of another model.
        """
        if not self._layout.has_tensors_of(layout):
            raise ConfigError(
                f"task.options: the model is not that of the version ({difference(self._layout, layout)})"
            )
        views = layout.views(weights)
        return {name: views[name].to(like.device, like.dtype, copy=True) for name, like in self._shared.items()}

    def use(self, held: Mapping[str, Tensor]) -> None:
        """Answer with these weights from now on. They take the place of others and are not copied."""
        for name, tensor in held.items():
            self._shared[name].data = tensor

    def load(self, layout: Layout, weights: Tensor) -> None:
        """Take the weights of a version, which are flat.

        Raises:
            ConfigError: They are of another model.
        """
        self.use(self.hold(layout, weights))


def write_adapter(
    settings: TaskSettings, layout: Layout, weights: Tensor, folder: Path, rank: int | None = None
) -> tuple[int, float]:
    """Write a version as an adapter of the base model; return how many tensors it has, and its error.

    With `lora.aggregation = exact` a version is no product of two small matrices. Then the adapter is the best product
    of the rank, of what was added to each adapted weight (by its singular values). The error is the norm of what is
    left out, as a part of the norm of all that was added; else it is 0.

    Args:
        settings: Those of the task.
        layout: Of the version.
        weights: Of the version, flat.
        folder: Where to, which is there.
        rank: Of the adapter, where the version is no product. None: `lora.rank`.

    Raises:
        ConfigError: The version has no adapter, or is of another model.
    """
    made = VersionedModel(settings)
    lora = made.options.lora
    if not lora.rank:
        raise ConfigError("task.options: lora.rank is 0, so a version is a whole model: export it merged")
    config, error = peft_config(lora), 0.0
    if lora.aggregation == "exact":
        before = {name: layer.get_base_layer().weight.float().clone() for name, layer in adapted_layers(made.model)}
        made.load(layout, weights)
        config.r = rank or lora.rank
        config.lora_alpha = config.r
        state, error = _best_products(made.model, before, config.r)
    else:
        made.load(layout, weights)
        state = get_peft_model_state_dict(made.model, adapter_name=NAME)
    config.base_model_name_or_path = made.options.model
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {_PREFIX + name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return len(tensors), error


def write_merged(settings: TaskSettings, layout: Layout, weights: Tensor, folder: Path) -> int:
    """Write a version as a whole model with its tokenizer; return how many tensors it has.

    Raises:
        ConfigError: The version is of another model.
    """
    made = VersionedModel(settings)
    made.load(layout, weights)
    model = made.model
    for name, layer in list(adapted_layers(model)):
        if made.options.lora.aggregation != "exact":  # whose base weight is the merged one already
            layer.merge(safe_merge=True)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()  # no page of the base's file
    model.config.use_cache = True
    model._hf_peft_config_loaded = False
    with quietly():
        model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return sum(1 for _ in model.parameters())


def _best_products(model: Any, before: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """A and B of each adapted layer, by the names of peft, and the error of all of them."""
    state: dict[str, Tensor] = {}
    left_out, added = 0.0, 0.0
    for name, layer in adapted_layers(model):
        change = layer.get_base_layer().weight.float() - before[name]
        if layer.fan_in_fan_out:
            change = change.T
        u, values, v = torch.linalg.svd(change, full_matrices=False)
        root = values[:rank].sqrt()
        a, b = root[:, None] * v[:rank], u[:, :rank] * root
        lacking = rank - len(root)
        if lacking > 0:
            a, b = torch.nn.functional.pad(a, (0, 0, 0, lacking)), torch.nn.functional.pad(b, (0, lacking))
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = a, b
        left_out += float(values[rank:].square().sum())
        added += float(values.square().sum())
    return state, math.sqrt(left_out / added) if added else 0.0
