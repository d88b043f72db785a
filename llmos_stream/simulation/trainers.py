"""Which trainer a run uses: the quickest that its model and settings allow."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer

from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.simulation.batched_trainer import BatchedTrainer, PlainSgd
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.job import Job, Trainer
from llmos_stream.simulation.layers import Layers
from llmos_stream.simulation.loop_trainer import LoopTrainer
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.stacked import Mapped, Stacked
from llmos_stream.training import Task

_CLOSE = 1e-3
_TRIED = 3


class _NotBatched(Exception):
    """Why models are trained one after the other."""


def make_trainer(task: Task, settings: RunSettings, data: SplitData | None) -> Trainer:
    """The trainer that `simulation.training` asks for.

    Raises:
        ConfigError: Batched training is asked for, and cannot be had.
    """
    asked = settings.simulation.training
    loop = LoopTrainer(task, settings, data, "one after the other, as asked for")
    if asked == "loop":
        return loop
    try:
        return _batched(task, settings, data, loop)
    except _NotBatched as why:
        if asked == "batched":
            raise ConfigError(f"simulation.training: batched is not possible here: {why}") from None
        loop.how = f"one after the other: {why}"
        return loop


def _batched(task: Task, settings: RunSettings, data: SplitData | None, loop: LoopTrainer) -> Trainer:
    model, layout = loop.local.trainer.model, loop.local.layout
    if data is None:
        raise _NotBatched("the sites of the task give batches, not tensors")
    if settings.client.local_steps == "auto":
        raise _NotBatched("client.local_steps auto follows each client")
    if loop.local.trainer.hooks:
        raise _NotBatched("hooks act on single models (task.hooks, client.proximal_mu, client.max_grad_norm)")
    shared = {spec.name for spec in layout.tensors}
    if layout.buffers or any(True for _ in model.buffers()) or shared != {name for name, _ in model.named_parameters()}:
        raise _NotBatched("the model has buffers, tied parameters or some that are not shared")
    if any(not one.requires_grad or one.dtype != torch.float32 for one in model.parameters()):
        raise _NotBatched("not all parameters are float32 and trained")
    sgd = _plain_sgd(loop.local.trainer.optimizer)
    device = _device(settings.simulation.device)
    tried: list[str] = []
    for how, stacked in _forms(task, model):
        trainer = BatchedTrainer(stacked, data, layout, loop.local.weights(), sgd, device, f"many at once, by {how}")
        if (problem := _problem(trainer, loop, data)) is None:
            return trainer
        tried.append(problem)
    raise _NotBatched(tried[-1])


def _forms(task: Task, model: nn.Module) -> Sequence[tuple[str, Stacked]]:
    mapped = ("vmap", Mapped(model, task.loss))
    layers = Layers.of(model)
    return [mapped] if layers is None or not _is_cross_entropy(task) else [("stacked matrices", layers), mapped]


def _is_cross_entropy(task: Task) -> bool:
    outputs = torch.linspace(-2, 2, 12, dtype=torch.float32, device="cpu").view(4, 3)
    targets = torch.tensor([0, 2, 1, 1], dtype=torch.int64, device="cpu")
    try:
        return torch.equal(task.loss(outputs, targets), cross_entropy(outputs, targets))
    except Exception:  # noqa: BLE001  whatever a task's own loss says of these is no cross entropy
        return False


def _plain_sgd(optimizer: Optimizer) -> PlainSgd:
    if type(optimizer) is not SGD or len(optimizer.param_groups) != 1:
        raise _NotBatched(
            f"the optimizer is a {type(optimizer).__name__} of {len(optimizer.param_groups)} groups, not SGD"
        )
    group = optimizer.param_groups[0]
    if group["dampening"] or group["nesterov"] or group["maximize"]:
        raise _NotBatched("SGD with dampening, Nesterov's momentum or maximize")
    return PlainSgd(float(group["lr"]), float(group["momentum"]), float(group["weight_decay"]))


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ConfigError("simulation.device: torch finds no GPU here; say cpu or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def _problem(trainer: BatchedTrainer, loop: LoopTrainer, data: SplitData) -> str | None:
    """Why its results are not those of the loop, tried on a few clients; None where they are."""
    base = loop.local.weights()
    clients = range(min(_TRIED, len(data.counts)))
    one_by_one, together = ([Job(client, 0, 0, base) for client in clients] for _ in range(2))
    try:
        trainer.train(together)
    except LlmosError:
        raise
    except Exception as error:  # noqa: BLE001  torch says in many ways what it cannot map
        return f"torch cannot map this model ({str(error).strip().splitlines()[0][:120]})"
    loop.train(one_by_one)
    for one, other in zip(one_by_one, together, strict=True):
        if not isinstance(one.delta, Tensor):
            return f"a client fails ({one.failed})"
        mine = torch.cat([part.clone() for part in other.delta.slices()])  # type: ignore[union-attr]
        if not torch.linalg.vector_norm(mine - one.delta) <= _CLOSE * torch.linalg.vector_norm(one.delta):
            return "a batch's loss is no mean over its examples, or the model draws by chance (dropout)"
    return None
