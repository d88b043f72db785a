"""A log of the task llm is rebuilt to the same weights, whichever way its adapters are averaged."""

from pathlib import Path

import pytest

from llmos_stream.broker import Broker
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import quick_settings, running_federation
from llmos_stream.types import CodecId, CodecSpec
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.training.llm.aids import Site, llm_settings, write_texts

_INT8 = CodecSpec(CodecId.INT8, {"block": 32, "stochastic": 0})
_ROUNDS = 4
_BROKERS = ["memory", pytest.param("kafka", marks=(pytest.mark.kafka, pytest.mark.full))]


@pytest.mark.parametrize("broker", _BROKERS, indirect=True)
@pytest.mark.parametrize("mode", ["ffa", "alternate", "exact"])
async def test_trained_adapters_are_rebuilt_bit_for_bit(
    broker: Broker, federation: str, mode: str, tiny: Path, tmp_path: Path
) -> None:
    """In the middle of a chain of deltas too, and of a stale update."""
    own = llm_settings(tiny, lora={"aggregation": mode, "rank": 2})
    sites = [
        Site(own.changed(client={"data": write_texts(tmp_path / f"{place}.jsonl", 8 + 4 * place, skip=place)}))
        for place in range(2)
    ]
    settings = quick_settings(
        federation,
        aggregation={"buffer_size": 2},
        staleness={"kind": "polynomial"},
        server_optimizer={"name": "sgd", "lr": 0.7, "momentum": 0.9, "nesterov": True},
        versions={"full_every": 3},
    )
    initial = Initial(sites[0].local.layout, sites[0].local.weights())
    async with running_federation(initial, settings, broker) as running:
        weights = [(await running.version(0)).weights.clone()]
        for number in range(_ROUNDS):
            for place, site in enumerate(sites):
                base = max(number - place, 0)
                done = site.train(weights[base], base)
                await running.publish(
                    done.delta, f"site-{place}", num_examples=done.num_examples, base_version=base, codec=_INT8
                )
            weights.append((await running.version(number + 1)).weights.clone())
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * _ROUNDS
        assert all(verdict.rebuilt_digest == verdict.published_digest for verdict in verdicts)
        assert len({verdict.rebuilt_digest for verdict in verdicts}) == _ROUNDS + 1
        assert {item.staleness for entry in log.index.versions.values() for item in entry.head.manifest} == {0, 1}
