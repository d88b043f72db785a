"""A client's state survives a kill, refuses what is damaged and is used by one process only."""

from pathlib import Path

import pytest
import torch

from llmos_stream.errors import StateError
from llmos_stream.roles import ClientState


def test_sequences_go_on_after_a_restart(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        used = [state.take_sequence() for _ in range(3)]
    with ClientState("a", tmp_path) as state:
        used.append(state.take_sequence())
    assert used == list(range(used[0], used[0] + 4))


def test_a_sequence_is_recorded_before_it_is_given_out(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        taken = state.take_sequence()
        # What a process that was killed here would find:
        assert f'"next":{taken + 1}' in (tmp_path / "sequence.json").read_text()


def test_a_lost_disk_does_not_repeat_a_sequence(tmp_path: Path) -> None:
    with ClientState("a", tmp_path / "old") as state:
        last = [state.take_sequence() for _ in range(5)][-1]
    with ClientState("a", tmp_path / "new") as state:
        first = state.take_sequence()
    assert first > last - 5  # from the clock, not from 0: five were taken within five milliseconds or more
    assert first > 1_600_000_000_000


def test_in_memory_it_starts_at_zero() -> None:
    state = ClientState("a", None)
    assert [state.take_sequence(), state.take_sequence()] == [0, 1]
    state.save_residual(torch.ones(3))
    assert state.load_residual() is None


def test_the_residual_comes_back_bit_for_bit(tmp_path: Path) -> None:
    residual = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    with ClientState("a", tmp_path) as state:
        assert state.load_residual() is None
        state.save_residual(residual)
    with ClientState("a", tmp_path) as state:
        loaded = state.load_residual()
    assert loaded is not None
    assert torch.equal(loaded, residual)


def test_a_kill_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        state.save_residual(torch.ones(4))
    (tmp_path / "residual.new").write_bytes(b"half of a fi")
    with ClientState("a", tmp_path) as state:
        loaded = state.load_residual()
    assert loaded is not None
    assert torch.equal(loaded, torch.ones(4))


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    with ClientState("a", tmp_path), pytest.raises(StateError, match="running already"):
        ClientState("a", tmp_path)
    ClientState("a", tmp_path).close()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"client_id": "a"}', b'{"client_id": "a", "next": "x"}'])
def test_damaged_sequences_are_refused_with_the_remedy(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "sequence.json").write_bytes(damage)
    with pytest.raises(StateError, match="delete it"):
        ClientState("a", tmp_path)
    (tmp_path / "sequence.json").unlink()
    ClientState("a", tmp_path).close()  # the refusal left no lock behind


def test_a_damaged_residual_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "residual.safetensors").write_bytes(b"\xff" * 64)
    with ClientState("a", tmp_path) as state, pytest.raises(StateError, match="delete it"):
        state.load_residual()


def test_another_clients_folder_is_refused(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        state.take_sequence()
    with pytest.raises(StateError, match="belongs to client a"):
        ClientState("b", tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match=r"client\.state_dir: .* cannot be used"):
        ClientState("a", tmp_path / "file" / "state")
