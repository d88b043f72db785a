"""What a state keeps: one sum whatever the buffer's size, and no more clients than could repeat themselves."""

import pytest
import torch

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import Folded, NewVersion, Refused, State, step
from llmos_stream.core.dedup import WINDOW
from llmos_stream.errors import Reason
from tests.core.builders import LAYOUT, start, tensors_in, update

NUMEL = 1000


def bytes_in(state: State) -> list[int]:
    """The sizes of the tensors that `state` keeps, in order."""
    return sorted(tensor.untyped_storage().nbytes() for tensor in tensors_in(state))


@pytest.mark.parametrize(("name", "moments"), [("sgd", 0), ("adam", 2), ("yogi", 2), ("adagrad", 2)])
@pytest.mark.parametrize("size", [2, 64, 2048])
def test_a_state_holds_one_sum_whatever_the_buffer_holds(name: str, moments: int, size: int) -> None:
    state = start(
        torch.zeros(NUMEL),
        LAYOUT,
        aggregation=AggregationSettings(buffer_size=size),
        server_optimizer=ServerOptimizerSettings.model_validate({"name": name}),
    )
    assert bytes_in(state) == [4 * NUMEL] * (1 + moments)
    for i in range(size - 1):
        state, _ = step(state, update(torch.ones(NUMEL), i), now=0.0)
    assert bytes_in(state) == [4 * NUMEL] * (2 + moments)
    state, effects = step(state, update(torch.ones(NUMEL), size), now=0.0)
    assert isinstance(effects[-1], NewVersion)
    assert bytes_in(state) == [4 * NUMEL] * (1 + moments)


def test_deltas_are_not_kept() -> None:
    state = start(torch.zeros(NUMEL), LAYOUT)
    delta = torch.ones(NUMEL)
    state, _ = step(state, update(delta), now=0.0)
    assert delta.data_ptr() not in {tensor.data_ptr() for tensor in tensors_in(state)}


def test_memory_does_not_grow_with_the_clients_and_no_repeat_is_folded() -> None:
    maximum, size = 3, 2
    state = start(
        torch.zeros(1),
        LAYOUT,
        aggregation=AggregationSettings(buffer_size=size),
        staleness=StalenessSettings(maximum=maximum),
    )
    sent = []
    for i in range(200):
        fresh = update([1.0], 0, base=state.version, client=f"client-{i}")
        state, effects = step(state, fresh, now=0.0)
        assert isinstance(effects[0], Folded)
        assert len(state.sequences) <= (maximum + 1) * size
        sent.append(fresh)
    for again in sent:
        state, (effect,) = step(state, again, now=0.0)
        assert not isinstance(effect, Folded | NewVersion)
        if isinstance(effect, Refused):
            assert effect.reason is Reason.TOO_STALE


def test_memory_does_not_grow_with_a_clients_updates() -> None:
    state = start(torch.zeros(1), LAYOUT, aggregation=AggregationSettings(buffer_size=1))
    for i in range(3 * WINDOW):
        state, _ = step(state, update([0.0], i, base=state.version), now=0.0)
    assert len(state.sequences.dump()["ann"]) == 2 + WINDOW // 64
