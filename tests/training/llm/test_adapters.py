"""What the mean of adapters is, held against the mean of the products in float64: by itself, and of an aggregator."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.testing import quick_settings, running_federation
from llmos_stream.training import load_task
from llmos_stream.training.llm.adapters import NAME, adapted_layers
from llmos_stream.training.local import evaluate
from tests.training.llm.aids import Site, llm_settings, llm_task, write_texts

_MODES = ("ffa", "alternate", "exact", "separate")
_RIGHT = _MODES[:3]


def _settings(tiny: Path, data: str, mode: str, **lora: Any) -> Settings:
    return llm_settings(tiny, data, lora={"aggregation": mode, "rank": 2} | lora)


def _two_sites(tiny: Path, tmp_path: Path, mode: str) -> list[Site]:
    return [
        Site(_settings(tiny, write_texts(tmp_path / f"{place}.jsonl", 12 + 8 * place, skip=place), mode))
        for place in range(2)
    ]


def _moved(site: Site, weights: Tensor, version: int, rounds: int) -> Tensor:
    """Somewhere on the way, so that neither A nor B is what it was at first."""
    for _ in range(rounds):
        trained = site.train(weights, version)
        weights = weights + trained.delta
        version += 1
    return weights


def _off(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """The largest error, as a part of what was added."""
    error = math.sqrt(sum(float((found[name] - expected[name]).square().sum()) for name in found))
    return error / math.sqrt(sum(float((expected[name] - start[name]).square().sum()) for name in found))


@pytest.mark.parametrize("mode", _MODES)
def test_a_version_has_the_mean_of_the_products_or_says_that_it_has_not(mode: str, tiny: Path, tmp_path: Path) -> None:
    sites = _two_sites(tiny, tmp_path, mode)
    begin = _moved(sites[0], sites[0].local.weights(), 0, rounds=2)
    start = sites[0].products(begin)
    trained = [site.train(begin, 2) for site in sites]
    shares = [one.num_examples / sum(each.num_examples for each in trained) for one in trained]
    ends = [site.products(begin + one.delta) for site, one in zip(sites, trained, strict=True)]
    mean = sum((share * one.delta for share, one in zip(shares, trained, strict=True)), torch.zeros(()))
    expected = {
        name: sum((share * end[name] for share, end in zip(shares, ends, strict=True)), torch.zeros(()))
        for name in start
    }
    off = _off(sites[0].products(begin + mean), expected, start)
    assert off < 1e-4 if mode in _RIGHT else off > 1e-3


@pytest.mark.parametrize("mode", _MODES)
def test_a_layer_in_training_is_the_layer_of_the_update_it_becomes(mode: str, tiny: Path, tmp_path: Path) -> None:
    """What a client has trained is measured the same in its own model and in one that loads what it sends."""
    (site, other) = _two_sites(tiny, tmp_path, mode)
    begin = _moved(site, site.local.weights(), 0, rounds=1)
    trained = site.train(begin, 1)
    here = evaluate(site.local.model, site.task.train_batches(), site.task.loss)
    other.local.load(begin + trained.delta)
    there = evaluate(other.local.model, site.task.train_batches(), site.task.loss)
    assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)
    other.local.load(begin)
    before = evaluate(other.local.model, site.task.train_batches(), site.task.loss)
    assert there["loss"] < before["loss"] - 1e-3


def test_exact_trains_a_and_b_as_separate_does(tiny: Path, tmp_path: Path) -> None:
    """E is shared beside; the steps that a client takes are the same."""
    ends = []
    for mode in ("separate", "exact"):
        site = _two_sites(tiny, tmp_path, mode)[0]
        weights = _moved(site, site.local.weights(), 0, rounds=2)
        views = site.local.layout.views(weights)
        ends.append({name: value.clone() for name, value in views.items() if "lora_" in name})
        ends[-1] |= {name: value.float() for name, value in site.products(weights).items()}
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-5)


def test_alternate_trains_one_matrix_at_a_time(tiny: Path, tmp_path: Path) -> None:
    site = _two_sites(tiny, tmp_path, "alternate")[0]
    weights = site.local.weights()
    for version, moves in enumerate(("lora_B", "lora_A", "lora_B")):
        delta = site.train(weights, version).delta
        moved = {name.split(".")[-3] for name, value in site.local.layout.views(delta).items() if value.any()}
        assert moved == {moves}
        weights = weights + delta


def test_ffa_shares_b_alone_and_a_is_the_same_in_every_process(tiny: Path, tmp_path: Path) -> None:
    one, other = _two_sites(tiny, tmp_path, "ffa")
    assert {spec.name.split(".")[-3] for spec in one.local.layout.tensors} == {"lora_B"}
    torch.manual_seed(123)
    for (name, layer), (_, again) in zip(
        adapted_layers(one.local.model), adapted_layers(other.local.model), strict=True
    ):
        assert torch.equal(layer.lora_A[NAME].weight, again.lora_A[NAME].weight), name
        assert layer.lora_A[NAME].weight.any()
    seeded = llm_settings(tiny, lora={"rank": 2}).changed(task={"seed": 1})
    third = load_task(seeded.task, seeded.client).model()
    assert not torch.equal(
        next(adapted_layers(third))[1].lora_A[NAME].weight, next(adapted_layers(one.local.model))[1].lora_A[NAME].weight
    )


@pytest.mark.parametrize("mode", _RIGHT)
async def test_an_aggregator_makes_the_mean_of_the_products(mode: str, tiny: Path, tmp_path: Path) -> None:
    """Of two versions with two sites each, and with `exact` of a stale update too."""
    sites = _two_sites(tiny, tmp_path, mode)
    settings = quick_settings(aggregation={"buffer_size": 2})
    initial = Initial(sites[0].local.layout, sites[0].local.weights())
    async with running_federation(initial, settings) as running:
        weights = [(await running.version(0)).weights.clone()]
        for number in range(2):
            start = sites[0].products(weights[number])
            # with `exact`, the second site has not seen version 1
            bases = [number, 0 if mode == "exact" else number]
            trained = [site.train(weights[base], base) for site, base in zip(sites, bases, strict=True)]
            total = sum(one.num_examples for one in trained)
            expected = {name: value.clone() for name, value in start.items()}
            for site, one, base in zip(sites, trained, bases, strict=True):
                from_, to = site.products(weights[base]), site.products(weights[base] + one.delta)
                for name in expected:
                    expected[name] += one.num_examples / total * (to[name] - from_[name])
            for place, (one, base) in enumerate(zip(trained, bases, strict=True)):
                await running.publish(one.delta, f"site-{place}", num_examples=one.num_examples, base_version=base)
            weights.append((await running.version(number + 1)).weights.clone())
            assert _off(sites[0].products(weights[-1]), expected, start) < 1e-4


@pytest.mark.parametrize(
    ("mode", "why"), [("alternate", "in turn"), ("exact", "together"), ("ffa", ""), ("separate", "")]
)
def test_products_that_need_a_whole_version_do_not_move_in_fragments(mode: str, why: str, tiny: Path) -> None:
    task = llm_task(tiny, lora={"rank": 2, "aggregation": mode})
    settings = quick_settings(aggregation={"buffer_size": 2, "fragments": 2})
    if not why:
        assert task.whole_because is None
        assert len(initial_of(task, settings).layout.fragments(2)) == 2
        return
    says = rf"aggregation\.fragments: lora\.aggregation = {mode} .*{why}.*; leave it at 1"
    with pytest.raises(ConfigError, match=says):
        initial_of(task, settings)
    assert llm_task(tiny, lora={"rank": 0, "aggregation": mode}).whole_because is None


def test_what_makes_no_sense_is_told_in_one_line(tiny: Path) -> None:
    with pytest.raises(TaskError, match=r"options.lora.targets: .*no_such"):
        llm_task(tiny, lora={"targets": "no_such"}).model()
    with pytest.raises(TaskError, match="dora has no product"):
        llm_task(tiny, lora={"dora": True, "aggregation": "exact"})
    settings = llm_settings(tiny).changed(task={"share": "adapters"})
    with pytest.raises(TaskError, match=r"task.share: .*follows from options.lora"):
        load_task(settings.task, settings.client)


def test_dora_learns_and_shares_its_lengths(tiny: Path, tmp_path: Path) -> None:
    site = Site(_settings(tiny, write_texts(tmp_path / "a.jsonl"), "ffa", dora=True))
    names = {
        spec.name.split(".")[-2] if "magnitude" not in spec.name else "length" for spec in site.local.layout.tensors
    }
    assert "length" in names
    delta = site.local.layout.views(site.train(site.local.weights(), 0).delta)
    assert all(value.any() for value in delta.values())


def test_targets_and_rank_follow_the_settings(tiny: Path) -> None:
    settings = llm_settings(tiny, lora={"rank": 3, "targets": "all-linear", "alpha": 6})
    layers = dict(adapted_layers(load_task(settings.task, settings.client).model()))
    assert {name.split(".")[-1] for name in layers} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert all(layer.scaling[NAME] == 2 and len(layer.lora_A[NAME].weight) == 3 for layer in layers.values())
