"""What a client has not sent yet of a model in fragments outlives it, through every kill, or is told of and dropped."""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
import torch
from torch import Tensor

from llmos_stream.broker import MemoryBroker
from llmos_stream.codec import Layout, decode
from llmos_stream.config import CodecSettings
from llmos_stream.errors import StateError
from llmos_stream.roles.client import Client, ClientState
from llmos_stream.roles.client.carry import Cut
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.roles.client.state import Unsent
from llmos_stream.runtime import Offload
from llmos_stream.training.shared_model import Trained
from tests.federation import federation_of
from tests.roles.test_client_kills import Killed, Knife
from tests.roles.test_fragments import CUT, LAYOUT, _fragments, _running, _send

PARAMETERS = LAYOUT.parameters
CODECS = {"float32": CodecSettings(name="float32"), "topk": CodecSettings(name="topk", fraction=0.25)}


def _deltas(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(PARAMETERS, generator=generator) for _ in range(count)]


def _sent(log: Sequence[Unsent]) -> Tensor:
    """What all updates of the log have added to the model, each counted once."""
    total = torch.zeros(PARAMETERS)
    for update in {update.head.sequence: update for update in log}.values():
        assert update.head.range is not None
        begin, end = update.head.range[0], min(update.head.range[1], PARAMETERS)
        total[begin:end] += decode(update.parts, update.head.codec, end - begin, buffers=_buffers(update))
    return total


def _buffers(update: Unsent) -> Tensor | None:
    return torch.zeros(LAYOUT.buffer_elements) if update.head.range == CUT[-1].range else None


def _cut(log: Sequence[Unsent]) -> Cut:
    """As where each update has made a version at once."""
    return Cut(CUT, log[-1].head.range if log else None)


def _trained(delta: Tensor, base: int) -> Trained:
    return Trained(delta.clone(), base, 10, {}, 1.0, buffers=torch.zeros(LAYOUT.buffer_elements))


def _life(folder: Path, codec: str, log: list[Unsent], deltas: list[Tensor]) -> None:
    """One process: send what waits, then train and send until all of the deltas are learnt."""
    state = ClientState("a", folder)
    try:
        outbox = Outbox(CODECS[codec], "a", LAYOUT, state)
        outbox.open()
        if (waiting := outbox.unsent()) is not None:
            log.append(waiting)
            outbox.settle(waiting.head.sequence)
        for number in range(len({update.head.sequence for update in log}), len(deltas)):
            carried = outbox.start(torch.zeros(LAYOUT.numel), _cut(log))[:PARAMETERS]
            owed = state.residual()
            known = _sent(log) + carried + (0.0 if owed is None else owed)
            torch.testing.assert_close(known, sum(deltas[:number], torch.zeros(PARAMETERS)), rtol=0, atol=1e-5)
            update, mine = outbox.put(_trained(deltas[number], number))
            assert mine
            log.append(update)
            outbox.settle(update.head.sequence)
    finally:
        if state._lock is not None:
            os.close(state._lock)  # as the end of a process does


def _named_fsync(_: int) -> None:
    """The disk's time is nothing to this test: the knife tears what was not synced yet."""


_named_fsync.__name__ = "fsync"


@pytest.mark.parametrize("codec", ["topk", pytest.param("float32", marks=pytest.mark.full)])
@pytest.mark.parametrize("how", ["torn", pytest.param("after", marks=pytest.mark.full)])
def test_a_kill_at_every_file_operation_loses_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, codec: str
) -> None:
    monkeypatch.setattr(os, "fsync", _named_fsync)
    knife, deltas = Knife(monkeypatch), _deltas()
    for at in itertools.count(1):
        folder, log = tmp_path / str(at), list[Unsent]()
        killed = True
        with knife.set(at, how), contextlib.suppress(Killed):
            _life(folder, codec, log, deltas)
            killed = False
        _life(folder, codec, log, deltas)
        names = {path.name for path in folder.iterdir()}
        assert len([name for name in names if name.startswith("carry-")]) <= 2  # the next is written over the last
        with ClientState("a", folder) as state:
            outbox = Outbox(CODECS[codec], "a", LAYOUT, state)
            outbox.open()
            left = outbox.start(torch.zeros(LAYOUT.numel), _cut(log))[:PARAMETERS]
            owed = state.residual()
        total = _sent(log) + left + (0.0 if owed is None else owed)
        torch.testing.assert_close(total, sum(deltas, torch.zeros(PARAMETERS)), rtol=0, atol=1e-5)
        assert left.abs().sum() > 1.0
        if not killed:
            break
    assert at > 40  # three updates, each of several files


def _carrying(folder: Path) -> tuple[Path, Tensor]:
    """The file of a carry, and what it holds."""
    with ClientState("a", folder) as state:
        outbox = Outbox(CODECS["float32"], "a", LAYOUT, state)
        outbox.open()
        outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT))
        update, _ = outbox.put(_trained(torch.ones(PARAMETERS), 4))
        outbox.settle(update.head.sequence)
        carried = state.carry.carried
    assert carried is not None
    (path,) = folder.glob("carry-*.safetensors")
    return path, carried.learnt


def _start(folder: Path, cut: Cut, layout: Layout = LAYOUT) -> Tensor:
    """What a new process trains from, on a version of zeros."""
    with ClientState("a", folder) as state:
        outbox = Outbox(CODECS["float32"], "a", layout, state)
        outbox.open()
        return outbox.start(torch.zeros(layout.numel), cut)[: layout.parameters]


def test_the_state_says_what_is_carried(tmp_path: Path) -> None:
    path, learnt = _carrying(tmp_path)
    said = orjson.loads((tmp_path / "state.json").read_bytes())["carry"]
    assert said.keys() == {"file", "size", "digest", "fragments", "unsent", "base"}
    assert (said["file"], said["size"]) == (path.name, path.stat().st_size)
    assert said["fragments"] == [fragment.digest.hex() for fragment in CUT]
    assert (said["unsent"], said["base"]) == ([0, 1, 1], 4)
    assert torch.equal(_start(tmp_path, Cut(CUT, CUT[0].range)), learnt)
    assert learnt.sum() == PARAMETERS - CUT[0].parameters


def test_a_client_whose_model_moves_as_a_whole_leaves_no_carry(tmp_path: Path) -> None:
    path, _ = _carrying(tmp_path)
    with ClientState("a", tmp_path) as state:
        outbox = Outbox(CODECS["float32"], "a", LAYOUT, state)
        outbox.open()
        outbox.start(torch.zeros(LAYOUT.numel), Cut())
        update, _ = outbox.put(_trained(torch.ones(PARAMETERS), 5))
        outbox.settle(update.head.sequence)
    assert "carry" not in orjson.loads((tmp_path / "state.json").read_bytes())
    ClientState("a", tmp_path).close()
    assert not path.exists()


@pytest.mark.parametrize("damage", ["truncated", "bit", "rubbish", "longer", "gone", "nan"])
def test_a_damaged_carry_is_told_of_and_dropped(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path, _ = _carrying(tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    match damage:
        case "gone":
            path.unlink()
        case "nan":  # a writer's fault, with the checksum that goes with it
            with ClientState("a", tmp_path / "other") as state:
                outbox = Outbox(CODECS["float32"], "a", LAYOUT, state)
                outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT))
                carried = state.carry.after(CUT[0], torch.full((PARAMETERS,), torch.nan), 4)
                update, _ = outbox.put(_trained(torch.ones(PARAMETERS), 4))
                outbox.settle(update.head.sequence)
                state.spool(_again(state, update), None, carried)
            path, tmp_path = next((tmp_path / "other").glob("carry-*")), tmp_path / "other"
        case _:
            path.write_bytes({"truncated": data[:-1], "bit": data, "longer": data + data}.get(damage, bytes(len(data))))
    assert torch.equal(_start(tmp_path, Cut(CUT, CUT[0].range)), torch.zeros(PARAMETERS))
    assert "what was learnt and not sent yet is dropped" in caplog.text
    assert "carry-" in caplog.text
    with ClientState("a", tmp_path) as state:  # and the client goes on
        outbox = Outbox(CODECS["float32"], "a", LAYOUT, state)
        outbox.open()
        if (waiting := outbox.unsent()) is not None:
            outbox.settle(waiting.head.sequence)
        outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT, CUT[0].range))
        assert outbox.put(_trained(torch.ones(PARAMETERS), 5))[1]


def _again(state: ClientState, update: Unsent) -> Unsent:
    """The same update under the next sequence."""
    return Unsent(update.head, update.prelude, state.write(state.take_sequence(), update.parts))


def test_what_the_state_says_wrongly_of_a_carry_is_refused_with_the_remedy(tmp_path: Path) -> None:
    _carrying(tmp_path)
    good = orjson.loads((tmp_path / "state.json").read_bytes())
    for wrong in (
        {"file": "../carry-1.safetensors"},
        {"file": "residual-1.safetensors"},
        {"fragments": ["00"]},
        {"fragments": [1, 2, 3]},
        {"unsent": [0, 1, -1]},
        {"base": "x"},
    ):
        (tmp_path / "state.json").write_bytes(orjson.dumps({**good, "carry": {**good["carry"], **wrong}}))
        with pytest.raises(StateError, match="and what was learnt and not sent yet"):
            ClientState("a", tmp_path)


@pytest.mark.parametrize("foreign", ["another model", "another length", "another cut"])
def test_a_foreign_carry_is_told_of_and_dropped(tmp_path: Path, foreign: str, caplog: pytest.LogCaptureFixture) -> None:
    _carrying(tmp_path)
    names = {"another model": ("x", 50), "another length": ("c", 51)}
    name, length = names.get(foreign, ("c", 50))
    layout = Layout.of({"a": torch.zeros(40), "b": torch.zeros(3, 10), name: torch.zeros(length)})
    if foreign == "another cut":
        layout = LAYOUT
    start = _start(tmp_path, Cut(layout.fragments(2 if foreign == "another cut" else 3)), layout)
    assert torch.equal(start, torch.zeros(layout.parameters))
    assert "what was learnt and not sent yet is dropped" in caplog.text


def test_what_no_update_could_count_for_is_not_carried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, learnt = _carrying(tmp_path)  # learnt on version 4
    assert torch.equal(_start(tmp_path, Cut(CUT, CUT[0].range, oldest=4)), learnt)
    assert caplog.text == ""
    assert torch.equal(_start(tmp_path, Cut(CUT, CUT[0].range, oldest=5)), torch.zeros(PARAMETERS))
    assert "it was learnt on version 4, and an update may be of version 5 at the oldest" in caplog.text


def test_what_was_learnt_in_an_earlier_run_is_not_carried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, learnt = _carrying(tmp_path)  # learnt on version 4
    assert torch.equal(_start(tmp_path, Cut(CUT, CUT[0].range, number=4)), learnt)
    assert torch.equal(_start(tmp_path, Cut(CUT, number=3)), torch.zeros(PARAMETERS))
    assert "it was learnt on version 4, and this federation is at version 3" in caplog.text


async def test_a_client_that_comes_back_goes_on_with_its_carry_until_that_is_too_old(
    federation: str, tmp_path: Path
) -> None:
    settings = _fragments(federation, staleness={"maximum": 6}, codec={"name": "float32"}, versions={"full_every": 1})
    starts: list[Tensor] = []

    async def life() -> Tensor:
        with ClientState("ann", tmp_path) as state:
            own = federation_of(running.broker, settings, offload)
            async with Client(own, "ann", LAYOUT, settings.codec, state) as client:
                version = await client.newest(None, 10.0)
                assert version is not None
                start = await client.start_from(version)
                if not starts:
                    await client.publish(_trained(torch.ones(PARAMETERS), version.head.number))
                return (start - version.weights)[:PARAMETERS]

    async with _running(MemoryBroker(), settings) as running, Offload(1) as offload:
        await running.version(0)
        starts.append(await life())
        await _send(running, 0, "bob", 0, 0, 1.0)
        for number in range(1, 8):
            await running.version(number)
            if number in {6, 7}:
                starts.append(await life())
            for client in ("bob", "cat"):
                await _send(running, number % 3, client, number, number, 1.0)
    expected = torch.ones(PARAMETERS)
    expected[: CUT[0].parameters] = 0
    assert [float(start.sum()) for start in starts] == [0.0, float(expected.sum()), 0.0]
    assert torch.equal(starts[1], expected)


def test_the_carry_of_a_client_without_a_folder_is_in_memory() -> None:
    with ClientState("a", None) as state:
        outbox = Outbox(CODECS["float32"], "a", LAYOUT, state)
        outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT))
        update, _ = outbox.put(_trained(torch.ones(PARAMETERS), 4))
        outbox.settle(update.head.sequence)
        outbox.open()  # over another connection
        assert outbox.start(torch.zeros(LAYOUT.numel), Cut(CUT)).sum() > 0


def test_a_client_forgets_the_residual_of_another_run_when_it_begins() -> None:
    with ClientState("a", None) as state:
        outbox = Outbox(CODECS["topk"], "a", LAYOUT, state)
        outbox.open()
        outbox.start(torch.zeros(LAYOUT.numel), Cut(number=5))
        outbox.put(_trained(torch.ones(PARAMETERS), 5))
        outbox.start(torch.zeros(LAYOUT.numel), Cut(number=5))
        assert state.residual() is not None
        outbox.start(torch.zeros(LAYOUT.numel), Cut(number=4))
        assert state.residual() is None
