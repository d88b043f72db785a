"""A client learns what became of its updates, and goes on where they count: after a lost disk, beside another."""

import secrets
import shutil
from pathlib import Path

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.core.client_sequences import CHANCES
from llmos_stream.core.dedup import SequenceWindow
from llmos_stream.errors import Reason, Rejected
from llmos_stream.roles.client import Client, ClientState
from llmos_stream.roles.client.outcomes import Outcomes
from llmos_stream.runtime import Offload
from llmos_stream.testing import RunningFederation
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import Contribution, UpdateHead, VersionHead, VersionKind
from tests.federation import federation_of
from tests.roles.aids import FLOAT32, LAYOUT, aggregator, delta_of, settings_for, update

_LONG = 1000.0


def _client(running: RunningFederation, state: ClientState, offload: Offload) -> Client:
    return Client(federation_of(running.broker, running.settings, offload), "c", LAYOUT, running.settings.codec, state)


async def _round(client: Client, value: float = 1.0, num_examples: int = 10) -> int:
    """Train on the newest version and send; hear what became of it."""
    version = await client.newest(None, 10.0)
    assert version is not None
    before = client.outcomes.counted + client.outcomes.dropped
    sent = await client.publish(Trained(delta_of(value), version.head.number, num_examples, {"loss": 0.5}, 2.0))
    while client.outcomes.counted + client.outcomes.dropped == before:
        await client.listen(5.0)
    return sent.head.sequence


async def test_a_client_hears_that_its_updates_count(broker: Broker, federation: str, tmp_path: Path) -> None:
    async with aggregator(broker, settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                for _ in range(2):
                    await _round(client)
        assert state.outcomes.summary() == {"counted": 2, "dropped": 0, "waiting": 0}


async def test_a_lost_disk_costs_no_update(federation: str, tmp_path: Path) -> None:
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        for disk in ("first", "second", "third"):
            with ClientState("c", tmp_path / disk) as state:
                async with _client(running, state, offload) as client:
                    await _round(client)
                    await _round(client)
            assert state.outcomes.summary() == {"counted": 2, "dropped": 0, "waiting": 0}
        assert (await running.version(6)).head.number == 6


async def test_two_living_clients_of_one_name_both_count_and_both_are_told(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path / "one") as one, ClientState("c", tmp_path / "two") as two:
            async with _client(running, one, offload) as first, _client(running, two, offload) as second:
                await _round(first)
                for _ in range(3):
                    await _round(second)
                    await _round(first)
        assert (one.outcomes.counted, two.outcomes.counted) == (4, 3)
        assert (one.outcomes.dropped, two.outcomes.dropped) == (0, 0)
    told = [record for record in caplog.records if "another one sends under that name" in record.getMessage()]
    assert len(told) == 2


async def test_two_clients_with_copies_of_one_folder_get_apart(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path / "one") as state:
            async with _client(running, state, offload) as client:
                await _round(client)
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        with ClientState("c", tmp_path / "one") as one, ClientState("c", tmp_path / "two") as two:
            async with _client(running, one, offload) as first, _client(running, two, offload) as second:
                await _round(first, 1.0)
                for _ in range(4):
                    await _round(second, 2.0)
                    await _round(first, 3.0)
        assert two.outcomes.counted + two.outcomes.dropped == 4
        assert one.outcomes.dropped + two.outcomes.dropped <= 1
    assert "another one sends under that name" in caplog.text


async def test_a_refused_update_is_told_with_the_reason(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                await client.newest(None, 10.0)
                await client.publish(Trained(delta_of(1.0), 5, 10, {"loss": 0.5}, 2.0))  # a version to come
                while not client.outcomes.dropped:
                    await client.listen(5.0)
        assert state.outcomes.counted == 0
        assert state.outcomes.why in caplog.text


def _head(sequence: int, digest: bytes = b"d" * 32) -> UpdateHead:
    return UpdateHead("c", sequence, 0, 1, b"l" * 32, FLOAT32, 4, digest)


def _version(*items: Contribution) -> VersionHead:
    return VersionHead(1, 0, VersionKind.FULL, b"l" * 32, FLOAT32, 4, b"p" * 32, b"w" * 32, 0, items)


def _windows(*sequences: int) -> list[int]:
    window = SequenceWindow()
    for sequence in sequences:
        window.add(sequence, 0)
    return window.dump()


def test_another_payload_under_an_own_sequence_takes_back_that_it_counted() -> None:
    outcomes = Outcomes("c")
    outcomes.begin(None, 3)
    outcomes.sent(_head(3), 0.0)
    outcomes.take_window(_windows(3), 1.0)
    assert outcomes.summary() == {"counted": 1, "dropped": 0, "waiting": 0}
    outcomes.take_manifest(_version(Contribution("c", 3, 0, 0, 1, 0, 1.0, 1.0, b"x" * 32)), 2.0)
    assert (outcomes.counted, outcomes.dropped, outcomes.is_shared) == (0, 1, True)
    assert outcomes.why.startswith("duplicate")


def test_what_lies_far_below_the_window_does_not_count() -> None:
    outcomes = Outcomes("c")
    outcomes.begin(None, 3)
    outcomes.sent(_head(3), 0.0)
    outcomes.take_window(_windows(5000), 1.0)
    assert outcomes.summary()["dropped"] == 1


@pytest.mark.parametrize(
    ("silent", "waited", "said"),
    [(12.0, 0.0, "no aggregator has been heard for 12 s"), (0.0, 45.0, "the oldest sent 45 s ago"), (3.0, 10.0, None)],
)
def test_silence_is_told_once_a_minute(
    silent: float, waited: float, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes("c")
    outcomes.sent(_head(1), _LONG)
    for _ in range(3):
        outcomes.look(_LONG + waited, silent)
    assert [record.levelname for record in caplog.records] == ([] if said is None else ["WARNING"])
    assert said is None or said in caplog.text


@pytest.mark.parametrize(("refused", "seconds"), [(3, 0.0), (1, 30.0)])
def test_a_client_whose_updates_never_count_is_told(
    refused: int, seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes("c")
    outcomes.look(_LONG, 0.0)
    for _ in range(refused):
        outcomes.give_up(Rejected(Reason.TOO_STALE, "base version 0 is 9 versions old"))
        outcomes.look(_LONG, 0.0)
    outcomes.look(_LONG + seconds, 0.0)
    (said,) = [record.getMessage() for record in caplog.records if "does not reach the model" in record.getMessage()]
    assert f"none of the last {refused} updates" in said
    assert "too_stale: base version 0 is 9 versions old" in said
    assert outcomes.summary() == {"counted": 0, "dropped": refused, "waiting": 0, "why": outcomes.why}
    caplog.clear()
    outcomes.begin(None, 0)
    outcomes.sent(_head(3), _LONG)
    outcomes.take_window(_windows(3), _LONG)
    outcomes.look(_LONG + 100.0, 0.0)
    assert "does not reach the model" not in caplog.text


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", b'{"head":{"client_id":"c","sequence":1}}', b"\xff", b"null"])
def test_records_of_another_form_say_nothing_of_an_update(value: bytes) -> None:
    outcomes = Outcomes("c")
    outcomes.sent(_head(2), 0.0)
    outcomes.take_refusal(value, 0.0)
    outcomes.take_window([1, 2], 0.0)
    assert outcomes.waiting == 1


@pytest.mark.parametrize("ahead", [1, 5000, 1 << 32, 1 << 40, 1 << 62, 1 << 63])
async def test_nobody_spends_the_sequences_of_another(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, ahead: int
) -> None:
    """Whoever sends under a client's name, however high: the client goes on, and is told."""
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                taken = min(await _round(client) + ahead, (1 << 63) - 1)
                await running.send(update(delta_of(1.0), client_id="c", sequence=taken, base_version=1))
                while "another one sends under that name" not in caplog.text:
                    await client.listen(1.0)
                counted = client.outcomes.counted
                while client.outcomes.counted < counted + 3:
                    await _round(client)


@pytest.mark.parametrize("starts", [(600_000, 5), (5, 600_000), (600_000, 599_999)])
async def test_who_goes_by_a_forged_window_comes_back(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: tuple[int, int]
) -> None:
    """It begins anew at a number that may be far below what was folded: then the log tells it where it was."""
    begun = iter(starts)
    monkeypatch.setattr(secrets, "randbelow", lambda most: next(begun, starts[1]) if most > CHANCES else most // 2)
    async with aggregator(MemoryBroker(), settings_for(federation)) as running, Offload(1) as offload:
        with ClientState("c", tmp_path) as state:
            async with _client(running, state, offload) as client:
                await _round(client)
                async with running.broker.producer() as producer:
                    await producer.send(running.topics.control, b"[1099511627776,1,1]", key=b"sequences/c")
                while state.outcomes.window is None or state.outcomes.window.highest < 1 << 40:
                    await client.listen(1.0)
                while client.outcomes.counted < 2:
                    await _round(client)
