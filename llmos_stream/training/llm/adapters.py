"""Low-rank adapters (LoRA, Hu et al. 2021), and how they are trained so that averaging them is right.

An adapted layer computes `W x + s B A x` with s = alpha / rank, A [rank, in] and B [out, rank]. What a federation
should average is the product, and a mean of products is not the product of means:

    mean_i(B_i A_i) = mean(B) mean(A) + mean_i((B_i - mean(B)) (A_i - mean(A)))

| aggregation | trained | shared | the product that a version has |
| --- | --- | --- | --- |
| `ffa` | B | B | exact: A is the same everywhere (FFA-LoRA, Sun et al. 2024) |
| `alternate` | B on even versions, A on odd ones | A, B | exact if bases have one parity (RoLoRA, Chen et al. 2024) |
| `exact` | A, B | A, B, E | exact, whatever the rule of aggregation, as long as it is linear |
| `separate` | A, B | A, B | that of the means (FedIT, Zhang et al. 2024) |

`exact` is FedEx-LoRA (Singhal et al. 2024), which adds the second term to the base. Here the adapted weight as a whole
is shared beside A and B: E, with `E x` as the layer of a version. A client computes `E x + s (B A - B0 A0) x`, with the
A0 and B0 of the version, and sends `s (B A - B0 A0)` as what it has added to E. Any linear rule so gives the mean of
the products in E, of stale updates too, while `E - s B A` is the base that FedEx would have. Ranks do not matter to E.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from llmos_stream.config.language_models import LoraOptions
from llmos_stream.errors import TaskError
from llmos_stream.training.hooks import Hook
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.wrappers import plain_name

NAME = "default"
"""What peft calls the adapter."""
SHARES: Mapping[str, str] = {
    "ffa": "*.lora_B.*",
    "alternate": "*.lora_A.*,*.lora_B.*",
    "exact": "*.lora_A.*,*.lora_B.*,*.base_layer.weight",
    "separate": "*.lora_A.*,*.lora_B.*",
}
"""What is shared, by `lora.aggregation`, as patterns of `task.share`."""
_DORA = ",*.lora_magnitude_vector.*"


def share_of(options: LoraOptions) -> str:
    """The patterns of what is shared."""
    return SHARES[options.aggregation] + (_DORA if options.dora else "")


def peft_config(options: LoraOptions) -> LoraConfig:
    """The adapter as peft describes it."""
    targets: Any = options.targets[0] if options.targets == ("all-linear",) else list(options.targets)
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # peft divides by it alone
        target_modules=targets,
        lora_dropout=options.dropout,
        use_dora=options.dora,
        task_type="CAUSAL_LM",
    )


def add_adapters(model: Any, options: LoraOptions, seed: int) -> None:
    """Put adapters into the model, in place; of the rest nothing is trained any more.

    B begins with zeros and A with what `seed` makes of the layer's name, whatever the release of any library: with
    `ffa` it must be the same at all sites.

    Raises:
        TaskError: The model has none of the layers.
    """
    try:
        inject_adapter_in_model(peft_config(options), model, adapter_name=NAME)
    except ValueError as error:
        raise TaskError(f"options.lora.targets: {' '.join(str(error).split())}") from None
    for name, layer in adapted_layers(model):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            part.float()  # a step is small, and would be lost in bfloat16
        generator = torch.Generator("cpu").manual_seed(derive_seed(seed, f"lora:{name}"))
        matrix = layer.lora_A[NAME].weight
        with torch.no_grad():
            matrix.uniform_(-1.0, 1.0, generator=generator).mul_(1 / math.sqrt(matrix.shape[1]))
        matrix.requires_grad_(options.aggregation != "ffa")
        if options.aggregation == "exact":
            layer._exact = _Exact(layer)


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The adapted layers by their plain names.

    Raises:
        TaskError: One of them is no linear layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            if NAME not in module.lora_A:
                raise TaskError(f"options.lora.targets: {name} is no linear layer")
            yield plain_name(model, name), module


class Alternating(Hook):
    """Trains B on versions of an even number, and A on those of an odd one.

    B comes first: as long as it is zero, A has no gradient.
    """

    def before_training(self, model: nn.Module, version: int) -> None:
        self._resting = [
            (layer.lora_B if version % 2 else layer.lora_A)[NAME].weight for _, layer in adapted_layers(model)
        ]

    def before_step(self, model: nn.Module) -> None:
        for matrix in self._resting:
            matrix.grad = None


class ExactProducts(Hook):
    """Tells, beside A and B, what the training has added to each adapted weight as a whole."""

    def __init__(self) -> None:
        self._layers: dict[str, _Exact] = {}

    def before_training(self, model: nn.Module, version: int) -> None:
        self._layers = {f"{name}.base_layer.weight": layer._exact for name, layer in adapted_layers(model)}
        for exact in self._layers.values():
            exact.begin()

    def after_training(self, delta: Mapping[str, Tensor]) -> None:
        for name, exact in self._layers.items():
            delta[name].copy_(exact.end())


class _Exact:
    """An adapted layer whose base weight is E: at rest it computes `E x`, and in training what it adds to that."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._start: tuple[Tensor, Tensor] | None = None
        layer.register_forward_pre_hook(self._settle)
        layer.register_forward_hook(self._without_start)

    def begin(self) -> None:
        """The layer has A, B and E of a version, on which it is trained from now on."""
        a, b = self._matrices()
        self._start = a.detach().clone(), b.detach().clone()

    def end(self) -> Tensor:
        """The training has ended: what it has added to E, in which that is from now on."""
        if self._start is None:
            raise ValueError("begin first")
        (a, b), (a0, b0) = self._matrices(), self._start
        with torch.no_grad():
            product: Tensor = ((b - b0) @ a + b0 @ (a - a0)) * self._layer.scaling[NAME]
            weight = self._layer.get_base_layer().weight
            change: Tensor = product.T if self._layer.fan_in_fan_out else product
            weight.add_(change.to(weight.dtype))
        self._start = None
        return change

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self._layer.lora_A[NAME].weight, self._layer.lora_B[NAME].weight

    def _settle(self, layer: Any, inputs: Any) -> None:
        """Measured are versions alone, which need no A and B."""
        layer._disable_adapters = self._start is None or not layer.training

    def _without_start(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer._disable_adapters or self._start is None:
            return output
        a, b = self._start
        known: Tensor = (inputs[0].to(a.dtype) @ a.T) @ b.T * layer.scaling[NAME]
        return (output - known).to(output.dtype)
