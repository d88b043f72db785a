"""The same updates in the same order give the same bytes, whatever the number of threads."""

import pytest
import torch

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings
from llmos_stream.core import NewVersion, Update, step
from llmos_stream.core.flat import l2_norm
from tests.core.builders import LAYOUT, rule_of, same_bytes, start, update

NUMEL = 100_003  # long enough for torch to split it over threads, and odd, so that they get tails
Fields = dict[str, object]
RULES: list[tuple[str, Fields]] = [
    ("fedbuff", {}),
    ("fedbuff", {"momentum": 0.9}),
    ("fedbuff", {"momentum": 0.9, "nesterov": True}),
    ("fedbuff", {"name": "adam"}),
    ("fedbuff", {"name": "yogi"}),
    ("fedbuff", {"name": "adagrad"}),
    ("fedasync", {}),
]


def make_updates() -> list[Update]:
    generator = torch.Generator().manual_seed(11)
    return [
        update(torch.randn(NUMEL, generator=generator), i, base=max(0, i // 2 - i % 3), examples=1 + 17 * i)
        for i in range(6)
    ]


def run(updates: list[Update], strategy: str, optimizer: Fields) -> list[NewVersion]:
    state = start(
        torch.ones(NUMEL),
        LAYOUT,
        aggregation=AggregationSettings.model_validate({"strategy": strategy, "buffer_size": 2, "clip_norm": 100.0}),
        server_optimizer=ServerOptimizerSettings.model_validate({"lr": 0.37, **optimizer}),
    )
    published = []
    for item in updates:
        state, effects = step(state, item, now=0.0)
        published += [effect for effect in effects if isinstance(effect, NewVersion)]
    return published


@pytest.mark.parametrize(("strategy", "optimizer"), RULES)
def test_same_bytes_with_one_thread_and_with_two(strategy: str, optimizer: Fields) -> None:
    updates = make_updates()
    torch.set_num_threads(1)
    one = run(updates, strategy, optimizer)
    torch.set_num_threads(2)
    two = run(updates, strategy, optimizer)
    assert len(one) == (3 if strategy == "fedbuff" else 6)
    assert [version.manifest for version in one] == [version.manifest for version in two]
    assert all(entry.clip < 1 for version in one for entry in version.manifest)
    assert all(same_bytes(a.weights, b.weights) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(("name_of_strategy", "optimizer"), RULES)
def test_a_manifest_and_its_deltas_rebuild_the_versions(name_of_strategy: str, optimizer: Fields) -> None:
    updates = make_updates()
    published = run(updates, name_of_strategy, optimizer)
    deltas = {item.offset: item.delta for item in updates}
    weights = torch.ones(NUMEL)
    rule = rule_of(
        AggregationSettings.model_validate({"strategy": name_of_strategy}),
        server_optimizer=ServerOptimizerSettings.model_validate({"lr": 0.37, **optimizer}),
    )
    pipeline = rule.pipeline(0, weights)
    for version in published:
        for entry in version.manifest:
            pipeline.fold(entry, deltas[entry.offset], now=0.0)
        weights, manifest = pipeline.flush(version.number - 1, weights, recorded=True)
        assert manifest == version.manifest
        assert same_bytes(weights, version.weights)


def test_the_norm_is_the_same_with_any_number_of_threads() -> None:
    flat = torch.randn(3_000_017, generator=torch.Generator().manual_seed(5))
    norms = set()
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        norms.add(l2_norm(flat))
    assert len(norms) == 1
