"""Where updates are folded. What a GPU gives must be what the CPU gives, bit for bit."""

from dataclasses import replace

import pytest
import torch

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings
from llmos_stream.core import NewVersion, State, device_for, release, step
from llmos_stream.core.device import Upload
from llmos_stream.core.flat import BLOCK, divisor
from llmos_stream.errors import ConfigError
from llmos_stream.types import TensorKind, TensorSpec
from tests.core.builders import LAYOUT, same_bytes, start, update
from tests.core.test_determinism import RULES, Fields
from tests.gpu import needs_gpu

NUMEL = 2 * BLOCK + 4321
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def begin(strategy: str, optimizer: Fields, device: torch.device | str, clip: float | None = 100.0) -> State:
    return start(
        torch.randn(NUMEL, generator=torch.Generator().manual_seed(3)),
        LAYOUT,
        aggregation=AggregationSettings.model_validate({"strategy": strategy, "buffer_size": 3, "clip_norm": clip}),
        server_optimizer=ServerOptimizerSettings.model_validate({"lr": 0.37, **optimizer}),
        device=device,
    )


def run(state: State) -> list[NewVersion]:
    generator = torch.Generator().manual_seed(11)
    published = []
    for number in range(9):
        item = update(torch.randn(NUMEL, generator=generator), number, max(0, state.version - 1), 7 + 13 * number)
        state, effects = step(state, item, now=0.0)
        for effect in effects:
            if isinstance(effect, NewVersion):
                # Overwritten by the receiver, as a version that is sent as a quantised delta is.
                effect.weights.mul_(1.5)
                state = release(state, effect.weights)
                published.append(effect)
    return published


@needs_gpu
@pytest.mark.parametrize(("strategy", "optimizer"), RULES)
def test_a_gpu_gives_the_same_versions_bit_for_bit(strategy: str, optimizer: Fields) -> None:
    here, there = (run(begin(strategy, optimizer, device)) for device in ("cpu", "cuda"))
    for one, other in zip(here, there, strict=True):
        assert other.weights.device.type == "cpu"
        assert [item.clip for item in one.manifest] == [item.clip for item in other.manifest]
        assert same_bytes(one.weights, other.weights)
        assert one.moments.keys() == other.moments.keys()
        assert all(same_bytes(one.moments[key], other.moments[key]) for key in one.moments)


@needs_gpu
@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync", "median", "norm_bound"])
def test_a_gpu_gives_the_same_buffers_bit_for_bit(strategy: str) -> None:
    specs = (TensorSpec("var", (NUMEL - 1,), "float32", TensorKind.BUFFER),)
    found: list[list[torch.Tensor]] = []
    for device in ("cpu", "cuda"):
        generator = torch.Generator().manual_seed(5)
        settings = AggregationSettings(strategy=strategy, buffer_size=3, one_of_a_client=False)
        state = start(torch.ones(NUMEL), LAYOUT, aggregation=settings, buffers=specs, device=device)
        found.append([])
        for number in range(6):
            item = update([0.5], number, state.version, 7 + 13 * number)
            values = torch.rand(NUMEL - 1, generator=generator)
            state, effects = step(state, replace(item, buffers=values), now=0.0)
            found[-1] += [effect.weights for effect in effects if isinstance(effect, NewVersion)]
    assert all(same_bytes(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("strategy", "optimizer"), RULES)
def test_the_state_goes_on_from_what_its_receiver_wrote(strategy: str, optimizer: Fields) -> None:
    state = begin(strategy, optimizer, device_for("auto"))
    last = run(state)[-1]
    assert same_bytes(state.weights.cpu(), last.weights)


def test_on_the_cpu_a_version_costs_no_copy() -> None:
    state = begin("fedbuff", {"name": "adam"}, "cpu")
    last = run(state)[-1]
    assert last.weights is state.weights
    live = state.pipeline.state_tensors()
    assert all(last.moments[name] is live[name] for name in live)


def test_slices_are_cut_into_blocks_and_not_copied_on_the_cpu() -> None:
    flat = torch.randn(NUMEL)
    blocks = list(Upload(torch.device("cpu")).blocks([flat]))
    assert [block.numel() for block in blocks] == [BLOCK, BLOCK, 4321]
    assert blocks[1].data_ptr() == flat[BLOCK:].data_ptr()


@needs_gpu
def test_slices_may_be_overwritten_once_the_next_is_asked_for() -> None:
    room, found = torch.empty(BLOCK), []
    device = torch.device("cuda")
    for block in Upload(device).blocks(room.fill_(float(number)) for number in range(20)):
        found.append(block.clone())
    assert all(bool((block == number).all()) for number, block in enumerate(found))


def test_dividing_by_a_tensor_is_dividing_by_its_number() -> None:
    flat = torch.randn(NUMEL)
    for number in (3.0, 7e9, float(2048 * (2**64 - 1))):
        assert same_bytes(flat / divisor(number, flat), flat / number)


@needs_none
def test_without_a_gpu_there_is_a_clear_error_and_auto_takes_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"aggregator\.device: torch finds no GPU here; say cpu"):
        device_for("cuda")
    assert device_for("auto") == device_for("cpu") == torch.device("cpu")
