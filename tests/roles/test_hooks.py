"""The client role calls the hooks of its task, and those that the settings ask for."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmos_stream.broker import Broker
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import running_federation
from llmos_stream.training import load_task
from llmos_stream.training.hooks import Hook
from llmos_stream.training.synthetic import BlobsTask
from tests.roles.aids import settings_for

_said: list[object] = []


class Noting(Hook):
    def before_training(self, model: nn.Module, version: int) -> None:
        _said.append(version)

    def after_training(self, delta: Mapping[str, Tensor]) -> None:
        for change in delta.values():
            change.fill_(0.5)


class Hooked(BlobsTask):
    def hooks(self) -> Sequence[Hook]:
        return [Noting()]


async def test_a_tasks_hooks_see_each_version_and_may_write_over_the_delta(broker: Broker, federation: str) -> None:
    _said.clear()
    settings = settings_for(
        federation,
        task={"entry": "tests.roles.test_hooks:Hooked", "shards": 1},
        client={"id": "a", "max_updates": 3, "proximal_mu": 0.1, "max_grad_norm": 1.0},
    )
    task = load_task(settings.task, settings.client)
    start = initial_of(task, settings)
    async with running_federation(start, settings, broker) as running, Offload(1) as offload:
        sent = await run_client(broker, settings, task, ClientState("a", None), offload, Shutdown())
        last = await running.version(3)
    assert sent == 3
    assert _said == [0, 1, 2]
    torch.testing.assert_close(last.weights, start.weights + 1.5)
