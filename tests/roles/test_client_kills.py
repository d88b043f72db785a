"""A client killed between any two of its file operations uses no sequence twice and loses and doubles nothing."""

import contextlib
import itertools
import os
import stat
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from llmos_stream.codec import SLICE, Layout, decode
from llmos_stream.config import Settings
from llmos_stream.errors import StateError, TaskError
from llmos_stream.roles.client import ClientState
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.roles.client.state import Unsent
from llmos_stream.training.shared_model import Trained
from tests.roles.aids import LAYOUT, NUMEL, settings_for

_PRIMITIVES = ("fsync", "replace", "unlink", "open")


class Killed(BaseException):
    """What nothing in the package catches."""


class Knife:
    """Kills at the n-th file operation: before it, after it, or with a file that is half written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: int | None = None
        self.how = "after"
        self.count = 0
        for name in _PRIMITIVES:
            monkeypatch.setattr(os, name, self._wrapped(getattr(os, name)))

    @contextlib.contextmanager
    def set(self, at: int | None, how: str) -> Iterator[None]:
        self.at, self.how, self.count = at, how, 0
        try:
            yield
        finally:
            self.at = None

    def _wrapped(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **more: Any) -> Any:
            here = False
            if self.at is not None:
                self.count += 1
                here = self.count == self.at
            if here and self.how == "torn" and operation.__name__ == "fsync":
                status = os.fstat(arguments[0])
                if stat.S_ISREG(status.st_mode):
                    os.truncate(f"/proc/self/fd/{arguments[0]}", status.st_size // 2)
            if here and self.how != "after":
                raise Killed
            result = operation(*arguments, **more)
            if here:
                if operation.__name__ == "open":
                    os.close(result)
                raise Killed
            return result

        return run


Log = list[Unsent]


def _settings(codec: str) -> Settings:
    return settings_for("kills", codec={"name": codec, "fraction": 0.25} if codec == "topk" else {"name": codec})


def _deltas() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(NUMEL, generator=generator) for _ in range(3)]


def _life(folder: Path, settings: Settings, log: Log, deltas: list[Tensor]) -> None:
    """One process: send what waits, then an update of each delta that is not in the log yet."""
    state = ClientState("a", folder)
    try:
        outbox = Outbox(settings.codec, "a", LAYOUT, state)
        outbox.open()
        if (waiting := outbox.unsent()) is not None:
            log.append(waiting)
            outbox.settle(waiting.head.sequence)
        for number in range(len({update.head.sequence for update in log}), len(deltas)):
            update, mine = outbox.put(Trained(deltas[number].clone(), number, 10, {"loss": 1.0}, 1.0))
            assert mine
            log.append(update)
            outbox.settle(update.head.sequence)
    finally:
        if state._lock is not None:
            os.close(state._lock)  # as the end of a process does


def _check(log: Log, deltas: list[Tensor], folder: Path) -> None:
    payloads: dict[int, bytes] = {}
    for update in log:
        payload = update.prelude + b"".join(update.parts)
        assert payloads.setdefault(update.head.sequence, payload) == payload  # never two for one sequence
    unique = list({update.head.sequence: update for update in log}.values())
    assert len(unique) == len(deltas)
    sent = sum((decode(update.parts, update.head.codec, NUMEL) for update in unique), torch.zeros(NUMEL))
    with ClientState("a", folder) as state:
        owed = state.residual()
        assert state.unsent() is None
        assert state.take_sequence() > max(payloads)
    total = sent if owed is None else sent + owed
    torch.testing.assert_close(total, sum(deltas, torch.zeros(NUMEL)), rtol=0, atol=1e-5)
    names = {path.name for path in folder.iterdir()}
    assert names == {"lock", "state.json"} | {name for name in names if name.startswith("residual-")}
    assert len(names) <= 3


@pytest.mark.parametrize("codec", ["topk", pytest.param("float32", marks=pytest.mark.full)])
@pytest.mark.parametrize("old", [False, pytest.param(True, marks=pytest.mark.full)], ids=["new", "first release"])
@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_kill_at_every_file_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, old: bool, codec: str
) -> None:
    knife, settings, deltas = Knife(monkeypatch), _settings(codec), _deltas()
    owed = torch.full((NUMEL,), 0.5)
    all_of_it = [*deltas[:-1], deltas[-1] + owed] if old and codec == "topk" else deltas
    repeated = 0
    for at in itertools.count(1):
        folder, log = tmp_path / str(at), Log()
        if old:
            folder.mkdir()
            (folder / "sequence.json").write_bytes(b'{"client_id":"a","next":5}')
            if codec == "topk":
                save_file({"residual": owed}, folder / "residual.safetensors")
        killed = True
        with knife.set(at, how), contextlib.suppress(Killed):
            _life(folder, settings, log, deltas)
            killed = False
        _life(folder, settings, log, deltas)
        _check(log, all_of_it, folder)
        if old:
            assert min(update.head.sequence for update in log) == 5
        repeated += len(log) - len(deltas)
        if not killed:
            assert knife.count == at - 1
            break
    assert at > 30  # three updates, each of several files
    assert repeated > 0  # some kills came between the acknowledgement and its note


@pytest.mark.parametrize("second", [*range(1, 7), *(pytest.param(at, marks=pytest.mark.full) for at in range(7, 14))])
def test_a_second_kill_while_recovering_from_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: int
) -> None:
    knife, settings, deltas = Knife(monkeypatch), _settings("topk"), _deltas()
    for first in range(4, 40, 3):
        folder, log = tmp_path / str(first), Log()
        for at, how in ((first, "torn"), (second, "after")):
            with knife.set(at, how), contextlib.suppress(Killed):
                _life(folder, settings, log, deltas)
        _life(folder, settings, log, deltas)
        _check(log, deltas, folder)


def test_an_update_is_on_the_disk_before_it_is_given_out(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        outbox = Outbox(_settings("topk").codec, "a", LAYOUT, state)
        update, _ = outbox.put(Trained(_deltas()[0], 0, 10, {}, 1.0))
        again, mine = outbox.put(Trained(_deltas()[1], 0, 10, {}, 1.0))
        assert (again, mine) == (update, False)
    with ClientState("a", tmp_path) as state:
        found = Outbox(_settings("topk").codec, "a", LAYOUT, state).unsent()
    assert found is not None
    assert found.head == update.head


@pytest.mark.parametrize("codec", ["topk", "float32", "int8"])
def test_a_delta_that_is_not_finite_uses_nothing_up(tmp_path: Path, codec: str) -> None:
    with ClientState("a", tmp_path) as state:
        outbox = Outbox(_settings(codec).codec, "a", LAYOUT, state)
        for bad in (float("nan"), float("inf")):
            delta = torch.zeros(NUMEL)
            delta[3] = bad
            with pytest.raises(TaskError, match=r"not finite; lower client\.lr"):
                outbox.put(Trained(delta, 0, 10, {}, 1.0))
        assert outbox.unsent() is None
        assert outbox.put(Trained(torch.ones(NUMEL), 0, 10, {}, 1.0))[1]


def test_an_update_that_could_not_be_written_leaves_the_residual_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas, log = _deltas(), Log()
    with ClientState("a", tmp_path) as state:
        outbox = Outbox(_settings("topk").codec, "a", LAYOUT, state)
        for number, delta in enumerate(deltas):
            with monkeypatch.context() as patch:

                def full(_: int) -> None:
                    raise OSError(28, "No space left on device")

                patch.setattr(os, "fsync", full)
                with pytest.raises(StateError, match="No space left on device"):
                    outbox.put(Trained(delta.clone(), number, 10, {}, 1.0))
            update, mine = outbox.put(Trained(delta.clone(), number, 10, {}, 1.0))
            assert mine
            log.append(update)
            outbox.settle(update.head.sequence)
    _check(log, deltas, tmp_path)


def test_a_delta_that_is_not_finite_in_a_late_slice_leaves_no_file_and_the_residual_as_it_was(tmp_path: Path) -> None:
    layout = Layout.of({"w": torch.zeros(2 * SLICE + 5)})
    for codec in ("int8", "float32"):
        with ClientState("a", tmp_path / codec) as state:
            outbox = Outbox(_settings(codec).codec, "a", layout, state)
            first, _ = outbox.put(Trained(torch.full((layout.numel,), 0.3), 0, 10, {}, 1.0))
            outbox.settle(first.head.sequence)
            files = {path: path.read_bytes() for path in (tmp_path / codec).iterdir()}
            owed = None if (residual := state.residual()) is None else residual.clone()
            delta = torch.zeros(layout.numel)
            delta[-1] = float("nan")
            with pytest.raises(TaskError, match="not finite"):
                outbox.put(Trained(delta, 0, 10, {}, 1.0))
            assert {path: path.read_bytes() for path in (tmp_path / codec).iterdir()} == files
            assert (owed is None) == (state.residual() is None)
            update, _ = outbox.put(Trained(torch.zeros(layout.numel), 0, 10, {}, 1.0))
            sent = decode(update.parts, update.head.codec, layout.numel)
            left = state.residual()
            if owed is not None and left is not None:
                torch.testing.assert_close(sent + left, owed, rtol=0, atol=1e-7)


def test_an_update_is_never_whole_in_memory(tmp_path: Path) -> None:
    layout = Layout.of({"w": torch.zeros(8 * SLICE)})
    delta = torch.randn(layout.numel, generator=torch.Generator().manual_seed(1))
    with ClientState("a", tmp_path) as state:
        outbox = Outbox(_settings("float32").codec, "a", layout, state)
        tracemalloc.start()
        try:
            update, _ = outbox.put(Trained(delta, 0, 10, {}, 1.0))
            size = sum(map(len, update.parts))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size == update.head.payload_size > 24 << 20
        assert peak < 12 << 20


def test_what_is_of_another_model_is_refused(tmp_path: Path) -> None:
    with ClientState("a", tmp_path) as state:
        Outbox(_settings("float32").codec, "a", LAYOUT, state).put(Trained(torch.ones(NUMEL), 0, 10, {}, 1.0))
    other = type(LAYOUT).of({"w": torch.zeros(3)})
    with ClientState("a", tmp_path) as state, pytest.raises(StateError, match="of another model"):
        Outbox(_settings("float32").codec, "a", other, state).open()
