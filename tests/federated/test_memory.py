"""How many copies of the model a federation within one process holds, counted by the tensors that are alive."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmos_stream import FederatedLearning
from llmos_stream.broker.memory.log import PartitionLog
from llmos_stream.roles.client.state_files import keep_payload
from llmos_stream.storage.spool import spooled

WIDTH = 1200
"""Its square, in float32, is more than `wire.memory_bytes`."""


def _copies() -> int:
    """Storages of tensors that are alive and as large as the model."""
    tensors = [thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter)]
    storages = [each.untyped_storage() for each in tensors]
    return len({each.data_ptr() for each in storages if each.nbytes() >= 4 * WIDTH * WIDTH})


def _bytes_in_memory() -> int:
    logs = [thing for thing in gc.get_objects() if isinstance(thing, PartitionLog)]
    return sum(len(entry.record.value or b"") for log in logs for entry in log._entries)


class _Watched:
    """Notes how many copies there are, at moments that tests name."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}

    def note(self, moment: str) -> None:
        self.most[moment] = max(self.most.get(moment, 0), _copies())

    def wrap(self, moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            self.note(moment)
            return function(*args)

        return noting


@pytest.mark.parametrize("codec", ["int8", "float32"])
def test_one_process_holds_few_copies_of_the_model(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = _Watched()
    model = nn.Linear(WIDTH, WIDTH, bias=False)
    gc.collect()
    others = _copies()  # the model, and what other tests have left
    x = torch.randn(4, WIDTH)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield x, x
        model.weight.grad = None  # the plain loop has gradients too
        watched.note("training")

    monkeypatch.setattr("llmos_stream.log.versions.spooled", watched.wrap("a version is written", spooled))
    monkeypatch.setattr(
        "llmos_stream.roles.client.state.keep_payload", watched.wrap("an update is encoded", keep_payload)
    )
    settings = {"codec": {"name": codec}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, batches, optimizer, loss=mse_loss, settings=settings) as learning:
        for epoch in range(4):
            learning.train(epoch)
        log = _bytes_in_memory()
    owed = 1 if codec == "int8" else 0
    counted = {moment: copies - others for moment, copies in watched.most.items()}
    # The newest version, shared by all, and what error feedback owes. A delta is still there where nothing is owed.
    assert counted["training"] <= 1 + owed
    assert counted["an update is encoded"] <= 2 + owed
    assert counted["a version is written"] <= 3
    assert log < 1 << 20
