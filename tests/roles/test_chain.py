"""The aggregator's end of the chain: which versions are full, and that nothing of a change is lost on the way."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import NewVersion
from llmos_stream.errors import ConfigError
from llmos_stream.log.replica import Follower
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator.preflight import check_fits
from llmos_stream.roles.aggregator.version_chain import Chain, Encoded
from llmos_stream.runtime import Offload
from llmos_stream.storage.spool import Spools
from llmos_stream.types import VersionKind
from llmos_stream.wire import head_digest
from llmos_stream.wire.control import Pointer
from tests.federation import decoded_versions
from tests.roles.aids import LAYOUT, NUMEL, aggregator, delta_of, settings_for, update


def _settings(full_every: int, **versions: object) -> Settings:
    return settings_for("f", versions={"full_every": full_every, **versions})


def _noise(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
async def offload() -> AsyncIterator[Offload]:
    async with Offload(2) as threads:
        yield threads


def _chain(full_every: int, offload: Offload) -> Chain:
    settings = _settings(full_every)
    return Chain(settings.versions, local_rule(settings), LAYOUT, Spools(1 << 20), offload)


async def _publish(chain: Chain, number: int, weights: Tensor) -> Encoded:
    encoded = await chain.encode(NewVersion(number, number - 1 if number else None, weights, ()), 0)
    chain.committed(encoded.head, Pointer(number, 0, 10 * number, encoded.full))
    return encoded


async def test_every_nth_version_is_full_and_readers_have_what_the_writer_has(offload: Offload) -> None:
    chain, follower = _chain(4, offload), Follower()
    kinds = []
    weights = _noise(0)
    for number in range(10):
        weights = weights + 0.01 * _noise(number)
        encoded = await _publish(chain, number, weights)  # overwrites them
        kinds.append(encoded.head.kind)
        version = follower.take(encoded.head, encoded.parts, head_digest(encoded.head))
        assert version is not None
        assert torch.equal(version.weights, weights)
        assert bool(encoded.residuals) == (encoded.head.kind is VersionKind.DELTA) == (encoded.full is not None)
        assert (encoded.head.tensors is None) == (encoded.head.kind is VersionKind.DELTA)
    full, delta = VersionKind.FULL, VersionKind.DELTA
    assert kinds == [full, delta, delta, delta, full, delta, delta, delta, full, delta]


async def test_one_makes_every_version_full(offload: Offload) -> None:
    chain = _chain(1, offload)
    assert {(await _publish(chain, number, _noise(number))).head.kind for number in range(4)} == {VersionKind.FULL}


async def test_a_full_version_pays_what_is_owed(offload: Offload) -> None:
    """What was meant: the sum of the changes, to within what the rounding of the residual lets go."""
    chain = _chain(6, offload)
    meant = _noise(0)
    weights = meant.clone()
    await _publish(chain, 0, weights)
    apart = []
    for number in range(1, 7):
        change = 0.1 * _noise(number)
        meant = meant + change
        weights = weights + change
        await _publish(chain, number, weights)
        apart.append(float((weights - meant).abs().max()))
    assert min(apart[:-1]) > 3 * apart[-1] > 0


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 2e37])
async def test_weights_that_no_delta_can_say_make_a_full_version(bad: float, offload: Offload) -> None:
    chain = _chain(100, offload)
    await _publish(chain, 0, _noise(0))
    assert (await _publish(chain, 1, _noise(1))).head.kind is VersionKind.DELTA
    weights = _noise(2)
    weights[3] = bad
    encoded = await _publish(chain, 2, weights)
    assert encoded.head.kind is VersionKind.FULL
    assert not encoded.residuals
    assert (await _publish(chain, 3, _noise(3))).head.kind is VersionKind.FULL  # nor can a delta lead back
    assert (await _publish(chain, 4, _noise(4))).head.kind is VersionKind.DELTA


async def test_another_codec_after_a_restart_goes_on_with_what_is_owed(broker: Broker, federation: str) -> None:
    deltas = [0.1 * _noise(number) for number in range(5)]
    settings = settings_for(federation)
    for numbers, codec in (range(2), "int4"), (range(2, 5), "int8"):
        settings = settings_for(federation, versions={"full_every": 5, "codec": codec})
        async with aggregator(broker, settings) as running:
            for number in numbers:
                await running.send(update(deltas[number], sequence=number, base_version=number))
                await running.version(number + 1)
    async with broker.reader([Topics(federation).models], start="earliest") as reader:
        versions = [
            replace(found, weights=found.weights.clone()) async for found in decoded_versions(reader, settings.wire)
        ]
    assert [version.head.kind.value for version in versions] == ["full", *["delta"] * 4, "full"]
    assert [version.head.codec.id for version in versions] == [1, 5, 5, 4, 4, 1]
    apart = [float((version.weights - sum(deltas[: version.head.number])).abs().max()) for version in versions]
    assert apart[2] > 5 * apart[4]
    assert apart[5] < 4e-3  # the residuals of int4 let a little go


async def test_a_new_run_goes_on_from_a_delta_with_the_weights_that_readers_have(
    broker: Broker, federation: str
) -> None:
    settings = settings_for(federation, versions={"full_every": 3})
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=0))
        await running.version(1)
        await running.kill()
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        await running.send(update(delta_of(1.0), sequence=2, base_version=1))
        await running.version(3)
        async with broker.reader([running.topics.models], start="earliest") as reader:
            last = [version async for version in decoded_versions(reader, settings.wire)][-1]
    assert last.head.kind is VersionKind.FULL
    assert torch.allclose(last.weights, delta_of(3.0), atol=1e-2)


def test_a_chain_that_retention_would_cut_is_refused_at_the_start() -> None:
    layout = Layout.of({"w": torch.zeros(10_000_000)})
    little = {"models_retention_gib": 0.2}
    check_fits(layout, settings_for("f", topics=little, versions={"full_every": 8}))
    with pytest.raises(ConfigError, match=r"topics\.models_retention_gib: 0\.2 GiB .*lower versions\.full_every"):
        check_fits(layout, settings_for("f", topics=little, versions={"full_every": 20}))
    with pytest.raises(ConfigError, match=r"topics\.snapshots_retention_gib"):
        check_fits(layout, settings_for("f", topics={"snapshots_retention_gib": 0.003}))
