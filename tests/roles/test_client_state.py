"""A client's state refuses what is damaged, is used by one process only, and takes over the first release's folders."""

from pathlib import Path

import orjson
import pytest
import torch
from safetensors.torch import save_file

from llmos_stream.codec import encode
from llmos_stream.errors import StateError
from llmos_stream.roles import ClientState
from llmos_stream.roles.client_state import Unsent
from llmos_stream.wire import pack_prelude
from tests.roles.aids import FLOAT32, delta_of, update_head


def _update(sequence: int, value: float = 1.0, client_id: str = "a") -> Unsent:
    parts = list(encode(delta_of(value), FLOAT32))
    head = update_head(parts, client_id=client_id, sequence=sequence)
    return Unsent(head, pack_prelude(head), parts)


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _spooled(folder: Path, residual: torch.Tensor | None = None) -> Unsent:
    """Leave an update unsent, as a kill would."""
    with ClientState("a", folder) as state:
        update = _update(state.take_sequence())
        state.spool(update, residual)
    return update


def test_an_update_its_residual_and_the_next_sequence_come_back(tmp_path: Path) -> None:
    residual = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    update = _spooled(tmp_path, residual)
    number = update.head.sequence
    assert _files(tmp_path) == {"lock", "state.json", f"update-{number}.bin", f"residual-{number}.safetensors"}
    with ClientState("a", tmp_path) as state:
        found, kept = state.unsent(), state.residual()
        assert found is not None
        assert (found.head, found.prelude) == (update.head, update.prelude)
        assert b"".join(found.parts) == b"".join(update.parts)
        assert kept is not None
        assert torch.equal(kept, residual)
        assert state.take_sequence() == number + 1
        state.settle(number)
        assert _files(tmp_path) == {"lock", "state.json", f"residual-{number}.safetensors"}
    with ClientState("a", tmp_path) as state:
        assert state.unsent() is None
        assert state.residual() is not None


def test_an_update_without_a_residual_leaves_the_old_one(tmp_path: Path) -> None:
    _spooled(tmp_path, torch.ones(3))
    with ClientState("a", tmp_path) as state:
        waiting = state.unsent()
        assert waiting is not None
        state.settle(waiting.head.sequence)
        state.spool(_update(state.take_sequence()), None)
    with ClientState("a", tmp_path) as state:
        kept = state.residual()
    assert kept is not None
    assert torch.equal(kept, torch.ones(3))


def test_one_update_waits_at_a_time_and_is_settled_once(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with ClientState("a", folder) as state:
            first = _update(state.take_sequence())
            state.spool(first, None)
            with pytest.raises(ValueError, match="settle"):
                state.spool(_update(state.take_sequence()), None)
            assert state.unsent() is first
            state.settle(first.head.sequence + 1)  # another one's
            assert state.unsent() is first
            state.settle(first.head.sequence)
            state.settle(first.head.sequence)
            assert state.unsent() is None


def test_a_lost_disk_does_not_repeat_a_sequence(tmp_path: Path) -> None:
    with ClientState("a", tmp_path / "old") as state:
        last = [state.take_sequence() for _ in range(5)][-1]
    with ClientState("a", tmp_path / "new") as state:
        first = state.take_sequence()
    assert first > last - 5  # from the clock, not from 0: five were taken within five milliseconds or more
    assert first > 1_600_000_000_000


def test_in_memory_it_starts_at_zero_and_keeps_what_it_is_given() -> None:
    state = ClientState("a", None)
    assert [state.take_sequence(), state.take_sequence()] == [0, 1]
    assert (state.unsent(), state.residual()) == (None, None)
    residual = torch.ones(3)
    state.spool(_update(1), residual)
    assert state.residual() is residual
    state.settle(1)
    assert state.residual() is residual


def test_the_folder_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "sequence.json").write_bytes(b'{"client_id":"a","next":7}')
    save_file({"residual": torch.arange(4.0)}, tmp_path / "residual.safetensors")
    (tmp_path / "residual.new").write_bytes(b"half of a fi")
    with ClientState("a", tmp_path) as state:  # and nothing is lost while nothing is written
        assert state.take_sequence() == 7
    with ClientState("a", tmp_path) as state:
        kept = state.residual()
        assert kept is not None
        assert torch.equal(kept, torch.arange(4.0))
        assert state.take_sequence() == 7
        state.spool(_update(7), kept + 1)
    assert _files(tmp_path) == {"lock", "state.json", "update-7.bin", "residual-7.safetensors"}
    with ClientState("a", tmp_path) as state:
        assert state.take_sequence() == 8


def test_leftovers_go_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    update = _spooled(tmp_path)
    leftovers = ["state.new", "update-1.bin", "residual-1.safetensors", "sequence.json"]
    others = ["notes.txt", "update-mine.bin", "model.safetensors"]
    for name in [*leftovers, *others]:
        (tmp_path / name).write_bytes(b"x")
    ClientState("a", tmp_path).close()
    assert _files(tmp_path) == {"lock", "state.json", f"update-{update.head.sequence}.bin", *others}


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    with ClientState("a", tmp_path), pytest.raises(StateError, match="running already"):
        ClientState("a", tmp_path)
    ClientState("a", tmp_path).close()


_NAMED = b'"size": 1, "digest": "00"}'


@pytest.mark.parametrize("name", ["state.json", "sequence.json"])
@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"client_id": "a"}',
        b'{"client_id": "a", "next": "x"}',
        b'{"client_id": "a", "next": true}',
        b'{"client_id": "a", "next": -1}',
        b'{"client_id": "a", "next": 1, "unsent": "update-1.bin"}',
        b'{"client_id": "a", "next": 1, "unsent": {"file": "../update-1.bin", ' + _NAMED + b"}",
        b'{"client_id": "a", "next": 1, "unsent": {"file": "update-1.bin"}}',
        b'{"client_id": "a", "next": 1, "residual": {"file": "update-1.bin", ' + _NAMED + b"}",
    ],
)
def test_a_damaged_state_is_refused_with_the_remedy(tmp_path: Path, name: str, damage: bytes) -> None:
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(StateError, match=rf"{name} is damaged .*; delete it to start with new sequence numbers"):
        ClientState("a", tmp_path)
    (tmp_path / name).unlink()
    ClientState("a", tmp_path).close()  # the refusal left no lock behind


@pytest.mark.parametrize("damage", ["truncated", "head", "payload", "rubbish", "other"])
def test_a_damaged_update_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    update = _spooled(tmp_path, torch.ones(2))
    path = tmp_path / f"update-{update.head.sequence}.bin"
    data = bytearray(path.read_bytes())
    place = {"head": len(update.prelude) // 2, "payload": len(data) - 1}.get(damage, 0)
    data[place] ^= 1
    other = _update(update.head.sequence, 2.0)
    if damage == "other":
        data = bytearray(b"".join([other.prelude, *other.parts]))
    path.write_bytes({"truncated": data[:-1], "rubbish": bytearray(len(data))}.get(damage, data))
    with ClientState("a", tmp_path) as state, pytest.raises(StateError, match="delete it to go on without that update"):
        state.unsent()
    path.unlink()
    for _ in range(2):  # it is forgotten for good
        with ClientState("a", tmp_path) as state:
            assert state.unsent() is None
            assert state.residual() is not None
            assert state.take_sequence() == update.head.sequence + 1


@pytest.mark.parametrize("damage", ["truncated", "bit", "rubbish"])
def test_a_damaged_residual_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    update = _spooled(tmp_path, torch.ones(100))
    path = tmp_path / f"residual-{update.head.sequence}.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes({"truncated": data[:-1], "bit": data, "rubbish": bytearray(len(data))}[damage])
    with (
        ClientState("a", tmp_path) as state,
        pytest.raises(StateError, match="delete it to go on without error feedback's memory"),
    ):
        state.residual()
    path.unlink()
    with ClientState("a", tmp_path) as state:
        assert state.residual() is None
        assert state.unsent() is not None


def test_a_damaged_residual_of_the_first_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sequence.json").write_bytes(b'{"client_id":"a","next":7}')
    (tmp_path / "residual.safetensors").write_bytes(b"\xff" * 64)
    with ClientState("a", tmp_path) as state, pytest.raises(StateError, match="delete it"):
        state.residual()


def test_another_clients_folder_is_refused(tmp_path: Path) -> None:
    _spooled(tmp_path)
    with pytest.raises(StateError, match="belongs to client a"):
        ClientState("b", tmp_path)


def test_the_state_file_is_what_the_module_says(tmp_path: Path) -> None:
    update = _spooled(tmp_path, torch.ones(2))
    number = update.head.sequence
    found = orjson.loads((tmp_path / "state.json").read_bytes())
    assert found.keys() == {"client_id", "next", "unsent", "residual"}
    assert (found["client_id"], found["next"]) == ("a", number + 1)
    for name in ("unsent", "residual"):
        assert found[name].keys() == {"file", "size", "digest"}
        assert found[name]["size"] == (tmp_path / found[name]["file"]).stat().st_size
    data = (tmp_path / f"update-{number}.bin").read_bytes()
    assert data == b"".join([update.prelude, *update.parts])


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used"):
        ClientState("a", tmp_path / "file" / "state")


def test_a_full_disk_is_told_and_uses_up_the_sequence(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        first = _update(state.take_sequence())
        in_the_way = tmp_path / f"update-{first.head.sequence}.bin"
        in_the_way.mkdir()
        with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used: Is a directory"):
            state.spool(first, torch.ones(1))
        assert (state.unsent(), state.residual()) == (None, None)
        in_the_way.rmdir()
        following = _update(state.take_sequence())
        assert following.head.sequence == first.head.sequence + 1
        state.spool(following, None)
        assert state.unsent() is following
