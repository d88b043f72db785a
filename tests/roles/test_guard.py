"""A version that the model could not hold is not published: its updates are refused, and the run goes on."""

from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker
from llmos_stream.codec import Layout
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import running_federation
from llmos_stream.types import EventKind
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import settings_for

NAMED = {"wide": torch.zeros(40), "narrow": torch.full((10,), 60000.0, dtype=torch.float16)}
LAYOUT = Layout.of(NAMED)
OPTIMIZERS: dict[str, dict[str, Any]] = {"sgd": {}, "momentum": {"momentum": 0.5}}


@pytest.mark.parametrize("full_every", [1, 16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
async def test_an_overflow_is_not_published_and_leaves_no_trace(
    broker: Broker, federation: str, optimizer: str, full_every: int
) -> None:
    settings = settings_for(
        federation,
        aggregation={"buffer_size": 2},
        server_optimizer=OPTIMIZERS[optimizer],
        versions={"full_every": full_every},
    )
    step, jump = torch.full((50,), 10.0), torch.full((50,), 1e9)
    async with running_federation(Initial(LAYOUT, LAYOUT.flatten(NAMED)), settings, broker) as running:
        await running.version(0)
        for number, delta in ((1, step), (2, jump), (2, step), (3, step)):
            for client in ("a", "b"):
                await running.publish(delta, client, base_version=number - 1)
            if delta is step:
                version = await running.version(number)
                assert LAYOUT.unflatten(version.weights)["narrow"].isfinite().all()
        events, refused = await running.events(EventKind.UPDATE_REJECTED, 2), await running.quarantined(2)
    assert [event.data["client_id"] for event in events] == ["a", "b"]
    for told in (*(event.data for event in events), *refused):
        assert told["reason"] == "unsafe_version"
        assert "version 2 is not published: narrow would go from 600" in str(told["detail"])
        assert "which float16 cannot hold" in str(told["detail"])
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 3


async def test_a_jump_is_not_published_where_that_is_set(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"max_step": 0.5})
    async with running_federation(Initial(LAYOUT, LAYOUT.flatten(NAMED)), settings, broker) as running:
        await running.version(0)
        await running.publish(torch.full((50,), -40000.0))
        await running.publish(torch.full((50,), 1.0))
        version = await running.version(1)
        assert [item.sequence for item in version.head.manifest] == [1]
