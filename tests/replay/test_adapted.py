"""A run whose versions are made of as many updates as clients take part, told again from its log alone."""

import contextlib
from collections.abc import Sequence

import pytest

from llmos_stream.broker import Broker
from llmos_stream.core import Rule
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.whatif import Change, WhatIf
from llmos_stream.testing import RunningFederation
from llmos_stream.types import VersionHead
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import aggregator, delta_of, settings_for

_VERSIONS = 8


async def _rounds(running: RunningFederation, numbers: Sequence[int]) -> None:
    for number in numbers:
        await running.version(number - 1)
        for place, client in enumerate("ab" if number > 2 else "a"):
            await running.publish(delta_of(1.0 + number + place), client, sequence=number, num_examples=9 * (place + 1))
        await running.version(number)


@pytest.mark.parametrize(
    "optimizer", [{}, {"momentum": 0.9}, {"name": "adam", "lr": 0.1}], ids=["sgd", "momentum", "adam"]
)
async def test_a_run_that_adapts_is_told_again_bit_for_bit(
    broker: Broker, federation: str, optimizer: dict[str, object]
) -> None:
    """Also where another aggregator has gone on with it."""
    settings = settings_for(
        federation,
        aggregation={"buffer_size": None},
        staleness={"kind": "polynomial"},
        server_optimizer=optimizer,
        versions={"full_every": 3},
        stop={"max_versions": _VERSIONS},
    )
    async with aggregator(broker, settings) as running:
        await _rounds(running, range(1, 5))
    async with aggregator(broker, settings) as running:
        with contextlib.suppress(TimeoutError):
            await _rounds(running, range(5, _VERSIONS + 1))
    async with replay_log(broker, settings) as log:
        heads = [log.index.entry(number).head for number in range(1, _VERSIONS + 1)]
        assert [_made_at(head) for head in heads[:2]] == [1, 1]
        assert all(len(head.manifest) <= _made_at(head) <= 2 for head in heads)
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * _VERSIONS
        same = await WhatIf(log, Change(settings={"staleness": {}})).run(log.index.numbers)
        assert same.digest == same.original_digest
        another = await WhatIf(log, Change(settings={"aggregation": {"strategy": "krum"}})).run(log.index.numbers)
        assert another.folded == sum(len(head.manifest) for head in heads)


def _made_at(head: VersionHead) -> int:
    assert head.rule["adapted"] is True
    return Rule.of(head.rule).capacity
