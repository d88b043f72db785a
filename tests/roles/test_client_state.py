"""A client's state refuses what is damaged, is used by one process only, and takes over the first release's folders."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from zlib import crc32

import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmos_stream.codec import encode, weights_digest
from llmos_stream.core.client_sequences import APART, CHANCES
from llmos_stream.core.dedup import SequenceWindow
from llmos_stream.errors import StateError
from llmos_stream.roles.client import ClientState
from llmos_stream.roles.client.state import Unsent
from llmos_stream.wire import pack_prelude
from tests.roles.aids import FLOAT32, delta_of, update_head


def _update(state: ClientState, sequence: int, value: float = 1.0) -> Unsent:
    parts = list(encode(delta_of(value), FLOAT32))
    head = update_head(parts, client_id="a", sequence=sequence)
    return Unsent(head, pack_prelude(head), state.write(sequence, iter(parts)))


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _spooled(folder: Path, residual: torch.Tensor | None = None) -> Unsent:
    """Leave an update unsent, as a kill would."""
    with ClientState("a", folder) as state:
        update = _update(state, state.take_sequence())
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


@pytest.mark.parametrize("where", ["on disk", "after a restart", "in memory"])
def test_the_residual_of_another_run_is_dropped(tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    state = ClientState("a", None if where == "in memory" else tmp_path)
    update = _update(state, state.take_sequence())
    base = update.head.base_version
    state.spool(update, torch.ones(3))
    state.settle(update.head.sequence)
    if where == "after a restart":
        state.close()
        state = ClientState("a", tmp_path)
    with state:
        state.drop_residual_after(base)
        assert state.residual() is not None
        assert caplog.text == ""
        state.drop_residual_after(base - 1)
        assert state.residual() is None
        assert f"it is of version {base}, and this federation is at version {base - 1}" in caplog.text
    if where != "in memory":
        with ClientState("a", tmp_path) as state:
            assert state.residual() is None


def test_a_residual_of_nobody_knows_which_version_is_kept(tmp_path: Path) -> None:
    """As the release before left it."""
    update = _spooled(tmp_path, torch.ones(3))
    said = orjson.loads((tmp_path / "state.json").read_bytes())
    assert said["residual"].pop("base") == update.head.base_version
    (tmp_path / "state.json").write_bytes(orjson.dumps(said))
    with ClientState("a", tmp_path) as state:
        state.drop_residual_after(0)
        assert state.residual() is not None


def test_an_update_without_a_residual_leaves_the_old_one(tmp_path: Path) -> None:
    _spooled(tmp_path, torch.ones(3))
    with ClientState("a", tmp_path) as state:
        waiting = state.unsent()
        assert waiting is not None
        state.settle(waiting.head.sequence)
        state.spool(_update(state, state.take_sequence()), None)
    with ClientState("a", tmp_path) as state:
        kept = state.residual()
    assert kept is not None
    assert torch.equal(kept, torch.ones(3))


def test_one_update_waits_at_a_time_and_is_settled_once(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        with ClientState("a", folder) as state:
            first = _update(state, state.take_sequence())
            state.spool(first, None)
            with pytest.raises(ValueError, match="settle"):
                state.spool(_update(state, state.take_sequence()), None)
            assert state.unsent() is first
            state.settle(first.head.sequence + 1)  # another one's
            assert state.unsent() is first
            state.settle(first.head.sequence)
            state.settle(first.head.sequence)
            assert state.unsent() is None


def test_a_lost_disk_does_not_repeat_a_sequence(tmp_path: Path) -> None:
    window = SequenceWindow()
    with ClientState("a", tmp_path / "old") as state:
        for _ in range(5):
            window.add(state.take_sequence())
    with ClientState("a", tmp_path / "new") as state:
        state.begin(window.dump())
        first = state.take_sequence()
        assert state.take_sequence() == first + 1
    assert window.highest + APART <= first < window.highest + APART + CHANCES


def test_a_new_folder_of_which_the_log_knows_nothing_begins_anywhere(tmp_path: Path) -> None:
    starts = set()
    for number in range(3):
        with ClientState("a", tmp_path / str(number)) as state:
            state.begin(None)
            starts.add(state.take_sequence())
    assert len(starts) > 1


def test_in_memory_it_starts_at_zero_and_keeps_what_it_is_given() -> None:
    state = ClientState("a", None)
    assert [state.take_sequence(), state.take_sequence()] == [0, 1]
    assert (state.unsent(), state.residual()) == (None, None)
    residual = torch.ones(3)
    state.spool(_update(state, 1), residual)
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
        state.spool(_update(state, 7), kept + 1)
    with ClientState("a", tmp_path) as state:
        assert _files(tmp_path) == {"lock", "state.json", "update-7.bin", "residual-7.safetensors"}
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
    data[-len(update.prelude) // 2 if damage == "head" else 0] ^= 1
    other = _update(ClientState("a", None), update.head.sequence, 2.0)
    if damage == "other":
        data = bytearray(b"".join([*other.parts, other.prelude]))
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
    assert found["unsent"].keys() == {"file", "size", "digest", "payload"}
    assert found["residual"].keys() == {"file", "size", "digest", "base"}
    for name in ("unsent", "residual"):
        assert found[name]["size"] == (tmp_path / found[name]["file"]).stat().st_size
    data = (tmp_path / f"update-{number}.bin").read_bytes()
    assert data == b"".join([*update.parts, update.prelude])
    assert found["unsent"]["payload"] == update.head.payload_size
    assert found["residual"]["digest"] == f"sums:{crc32(torch.ones(2).numpy().tobytes()):08x}"
    assert torch.equal(load_file(tmp_path / found["residual"]["file"])["residual"], torch.ones(2))


@pytest.mark.parametrize("at", [0, 8 * 2047, 8 * 2048, 8 * 2048 + 5])
def test_a_bit_that_flips_anywhere_in_a_residual_is_seen(tmp_path: Path, at: int) -> None:
    owed = torch.linspace(-1, 1, 4098)
    _spooled(tmp_path, owed)
    (path,) = tmp_path.glob("residual-*.safetensors")
    data = bytearray(path.read_bytes())
    with ClientState("a", tmp_path) as state:
        assert state.residual() is not None
    data[len(data) - owed.nbytes + at] ^= 16
    path.write_bytes(data)
    with ClientState("a", tmp_path) as state, pytest.raises(StateError, match="do not match their digest"):
        state.residual()


@pytest.mark.parametrize("damaged", [False, True])
def test_the_folder_of_the_second_release_is_taken_over(tmp_path: Path, damaged: bool) -> None:
    update = _update(ClientState("a", None), 7)
    message = b"".join([update.prelude, *update.parts])
    (tmp_path / "update-7.bin").write_bytes(message)
    owed = torch.arange(4.0)
    save_file({"residual": owed}, tmp_path / "residual-7.safetensors")
    size = (tmp_path / "residual-7.safetensors").stat().st_size
    digest = sha256(update.prelude).hexdigest()
    state_json = {
        "client_id": "a",
        "next": 8,
        "unsent": {"file": "update-7.bin", "size": len(message), "digest": digest},
        "residual": {"file": "residual-7.safetensors", "size": size, "digest": weights_digest(owed + damaged).hex()},
    }
    (tmp_path / "state.json").write_bytes(orjson.dumps(state_json))
    with ClientState("a", tmp_path) as state:
        found = state.unsent()
        assert found is not None
        assert (found.head, found.prelude) == (update.head, update.prelude)
        assert b"".join(found.parts) == b"".join(update.parts)
        if damaged:
            with pytest.raises(StateError, match="do not match their digest"):
                state.residual()
            return
        kept = state.residual()
        assert kept is not None
        assert torch.equal(kept, owed)
        state.settle(7)
        state.spool(_update(state, state.take_sequence()), kept + 1)
    with ClientState("a", tmp_path):
        assert _files(tmp_path) == {"lock", "state.json", "update-8.bin", "residual-8.safetensors"}


def test_an_update_is_read_from_its_file_again_and_again_also_when_it_is_settled(tmp_path: Path) -> None:
    payload = [bytes([number]) * 700_000 for number in range(4)]
    with ClientState("a", tmp_path) as state:
        written = state.write(1, iter(payload))
        head = replace(update_head(payload), client_id="a", sequence=1)
        update = Unsent(head, pack_prelude(head), written)
        assert (written.size, written.digest) == (head.payload_size, head.payload_digest)
        state.spool(update, None)
        walk = iter(update.parts)
        assert len(next(walk)) == 1 << 20
        state.settle(1)
        assert _files(tmp_path) == {"lock", "state.json"}
        assert b"".join(update.parts) == b"".join(payload)
        assert len(b"".join(walk)) == 2_800_000 - (1 << 20)


def test_a_payload_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    def sections() -> Iterator[bytes]:
        yield b"the first"
        raise ZeroDivisionError

    with ClientState("a", tmp_path) as state:
        with pytest.raises(ZeroDivisionError):
            state.write(1, sections())
        assert _files(tmp_path) == {"lock"}


def test_a_payload_in_memory_is_no_payload_of_a_folder(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state, pytest.raises(ValueError, match="not written to this folder"):
        state.spool(_update(ClientState("a", None), 1), None)


def test_the_last_residual_but_one_is_written_over_and_goes_with_the_next_opening(tmp_path: Path) -> None:
    def names() -> set[str]:
        return {path.name for path in tmp_path.glob("residual*")}

    def files() -> set[int]:
        return {path.stat().st_ino for path in tmp_path.glob("residual*")}

    with ClientState("a", tmp_path) as state:
        for sequence, size in enumerate((100, 100, 100, 5)):  # the last for another model
            update = _update(state, sequence)
            before = files()
            state.spool(update, torch.full((size,), float(sequence)))
            state.settle(sequence)
            if sequence >= 2:
                assert files() == before
    assert names() == {"residual-2.safetensors", "residual-3.safetensors"}
    with ClientState("a", tmp_path) as state:
        assert names() == {"residual-3.safetensors"}
        kept = state.residual()
    assert kept is not None
    assert torch.equal(kept, torch.full((5,), 3.0))


def test_an_empty_residual_comes_back(tmp_path: Path) -> None:
    _spooled(tmp_path, torch.zeros(0))
    with ClientState("a", tmp_path) as state:
        kept = state.residual()
    assert kept is not None
    assert kept.numel() == 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used"):
        ClientState("a", tmp_path / "file" / "state")


def test_a_full_disk_is_told_and_uses_up_the_sequence(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        sequence = state.take_sequence()
        in_the_way = tmp_path / f"update-{sequence}.bin"
        in_the_way.mkdir()
        with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used: Is a directory"):
            _update(state, sequence)
        in_the_way.rmdir()
        first = _update(state, sequence)
        in_the_way = tmp_path / f"residual-{sequence}.safetensors"
        in_the_way.mkdir()
        with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used: Is a directory"):
            state.spool(first, torch.ones(1))
        assert (state.unsent(), state.residual()) == (None, None)
        in_the_way.rmdir()
        following = _update(state, state.take_sequence())
        assert following.head.sequence == first.head.sequence + 1
        state.spool(following, None)
        assert state.unsent() is following
