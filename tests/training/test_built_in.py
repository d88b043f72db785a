"""The built-in tasks: repeatable, disjoint over clients, and learnable where they are meant to be learnt."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from torch import Tensor

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer, Task, load_task, shared_tensors
from llmos_stream.training.local import evaluate
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.tensor_task import Batches

TENSOR_TASKS = ["digits", "blobs"]
ALL_TASKS = [*TENSOR_TASKS, "noop:1003"]


def _load(entry: str, client: ClientSettings | None = None, *, shards: int = 8, seed: int = 0) -> Task:
    return load_task(TaskSettings(entry=entry, shards=shards, seed=seed), client or ClientSettings())


def _weights(task: Task) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in shared_tensors(task.model(), "all").values()])


def _trained(task: Task, shard: int, epochs: int) -> torch.nn.Module:
    model = task.model()
    trainer = LocalTrainer(model, task.optimizer(model), task.loss)
    batches = task.train_batches(shard)
    for _ in range(epochs):
        trainer.run_epoch(batches)
    return model


@pytest.mark.parametrize("entry", ALL_TASKS)
def test_the_first_weights_depend_on_the_seed_alone(entry: str) -> None:
    task = _load(entry, seed=1)
    torch.rand(3)  # the process's generator moves on, and must not matter
    assert torch.equal(_weights(task), _weights(task))
    assert torch.equal(_weights(task), _weights(_load(entry, seed=1)))
    assert not torch.equal(_weights(task), _weights(_load(entry, seed=2)))


@pytest.mark.parametrize("entry", TENSOR_TASKS)
def test_the_first_weights_favour_no_class(entry: str) -> None:
    task = _load(entry)
    inputs, _ = next(iter(task.test_batches(64) or ()))
    assert isinstance(inputs, Tensor)
    assert not task.model()(inputs).any()


def test_the_digits_have_a_second_model() -> None:
    """A hidden layer of 64; what else an option may say is told."""
    task = load_task(TaskSettings(entry="digits", options={"model": "mlp"}), ClientSettings())
    assert len(_weights(task)) == 64 * 64 + 64 + 64 * 10 + 10
    images, _ = next(iter(task.train_batches(0)))
    assert task.model()(images).shape == (len(images), 10)
    for options in ({"model": "forest"}, {"depth": 2}):
        with pytest.raises(TaskError, match=r"task\.options: model=convnet or model=mlp"):
            load_task(TaskSettings(entry="digits", options=options), ClientSettings())


def test_models_made_in_several_threads_at_once_are_the_same() -> None:
    task = _load("digits")
    expected = _weights(task)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(weights, expected) for weights in pool.map(lambda _: _weights(task), range(16)))


@pytest.mark.parametrize("entry", TENSOR_TASKS)
def test_shards_and_test_set_are_disjoint_and_the_same_for_clients_with_other_settings(entry: str) -> None:
    def rows(batches: object) -> list[bytes]:
        assert isinstance(batches, Batches)
        return [row.numpy().tobytes() for inputs, _ in batches for row in inputs]

    one, other = _load(entry), _load(entry, ClientSettings(batch_size=7, lr=0.5, shard=3))
    shards = [rows(one.train_batches(shard)) for shard in range(8)]
    assert [sorted(shard) for shard in shards] == [sorted(rows(other.train_batches(shard))) for shard in range(8)]
    assert [len(shard) for shard in shards] == [one.num_train_examples(shard) for shard in range(8)]
    assert rows(one.test_batches(100)) == rows(other.test_batches(64))
    together = [row for shard in shards for row in shard] + rows(one.test_batches(100))
    assert len(together) == {"digits": 1797, "blobs": 1280}[entry]
    assert len(set(together)) == len(together)
    assert min(map(len, shards)) >= 32


def test_the_test_set_of_the_digits_is_a_fifth_of_each_class() -> None:
    (batch,) = _load("digits").test_batches(1000) or ()
    assert isinstance(batch, tuple)
    labels = batch[1]
    assert len(labels) == 359
    assert torch.bincount(labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_the_digits_are_standardised() -> None:
    task = _load("digits", shards=1)
    everything = chain(task.train_batches(0), task.test_batches(64) or ())
    pixels = torch.cat([inputs for inputs, _ in everything])  # type: ignore[misc]
    assert pixels.shape == (1797, 1, 8, 8)
    assert pixels.mean().item() == pytest.approx(0, abs=1e-3)
    assert pixels.std().item() == pytest.approx(1, abs=1e-3)


def test_the_digits_are_learnt_to_97_percent_in_one_place() -> None:
    task = _load("digits", shards=1)
    model = _trained(task, shard=0, epochs=5)
    assert 10_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 50_000
    assert evaluate(model, task.test_batches(512) or (), task.loss)["accuracy"] >= 0.97


@pytest.mark.parametrize("seed", range(5))
def test_the_blobs_are_learnt_at_once_whatever_the_seed(seed: int) -> None:
    task = _load("blobs", shards=1, seed=seed)
    assert evaluate(_trained(task, 0, epochs=2), task.test_batches(512) or (), task.loss)["accuracy"] >= 0.97


def test_training_again_from_the_start_gives_the_same_weights() -> None:
    first, second = (_trained(_load("blobs"), shard=2, epochs=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("entry", TENSOR_TASKS)
@pytest.mark.parametrize("shard", [-1, 8])
def test_a_shard_that_does_not_exist_is_refused(entry: str, shard: int) -> None:
    task = _load(entry)
    with pytest.raises(TaskError, match=f"{entry} has shards 0 to 7, not {shard}"):
        task.train_batches(shard)
    with pytest.raises(TaskError, match=f"{entry} has shards 0 to 7, not {shard}"):
        task.num_train_examples(shard)


def test_each_epoch_has_an_order_of_its_own_that_repeats_with_the_seed() -> None:
    inputs, targets = torch.arange(10.0), torch.arange(10)
    passes = [[targets.tolist() for _, targets in batches] for batches in [Batches(inputs, targets, 4, 1)] * 3]
    again = Batches(inputs, targets, 4, 1)
    assert [[targets.tolist() for _, targets in again] for _ in range(3)] == passes
    assert len({str(order) for order in passes}) == 3
    assert [[len(batch) for batch in order] for order in passes] == [[4, 4, 2]] * 3
    assert all(sorted(chain(*order)) == list(range(10)) for order in passes)
    assert [targets.tolist() for _, targets in Batches(inputs, targets, 4, 2)] != passes[0]


def test_inputs_and_targets_are_shuffled_together() -> None:
    for inputs, targets in Batches(torch.arange(10.0), torch.arange(10), 3, shuffle_seed=0):
        assert inputs.tolist() == targets.tolist()


def test_without_a_seed_the_order_stays() -> None:
    batches = Batches(torch.arange(5.0), torch.arange(5), 2)
    assert len(batches) == 3
    for _ in range(2):
        assert [targets.tolist() for _, targets in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("numel", [10, 1003, 3_000_000])
def test_noop_has_the_parameters_asked_for_in_ten_tensors(numel: int) -> None:
    tensors = shared_tensors(_load(f"noop:{numel}").model(), "all")
    assert len(tensors) == 10
    assert sum(tensor.numel() for tensor in tensors.values()) == numel
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_noop_adds_noise_of_the_client_to_every_weight_and_computes_no_gradient() -> None:
    size = 2_500_000

    def delta(shard: int) -> Tensor:
        task = _load(f"noop:{size}", ClientSettings(shard=shard))
        before, model = task.model(), task.model()
        trainer = LocalTrainer(model, task.optimizer(model), task.loss)
        assert trainer.run_epoch(task.train_batches(shard)).num_examples == task.num_train_examples(shard)
        assert all(parameter.grad is None for parameter in model.parameters())
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        return torch.cat([(new - old).detach() for new, old in pairs])

    first = delta(0)
    assert first.numel() == size
    assert first.count_nonzero() > 0.999 * size  # a few are too small for a float32 to change
    assert first.mean().item() == pytest.approx(0, abs=1e-5)
    assert first.std().item() == pytest.approx(1e-3, rel=0.01)
    assert torch.equal(first, delta(0))
    assert not torch.equal(first, delta(1))


def test_noop_can_be_evaluated() -> None:
    task = _load("noop:10")
    assert evaluate(task.model(), task.test_batches(4) or (), task.loss)["num_examples"] == 1


def test_seeds_for_different_purposes_differ_and_never_change() -> None:
    seeds = [derive_seed(0, "model"), derive_seed(1, "model"), derive_seed(0, "split"), derive_seed(0, "batches", 1)]
    assert len({*seeds, derive_seed(0, "batches", 1, 0), derive_seed(0, "batches", 10), derive_seed(0, "batches")}) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "batches", 1, 0) == 3_619_727_406_976_403_430
