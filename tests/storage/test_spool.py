"""Spools keep what they are given, in memory and in the file, and give all of it back."""

import gc
import os
import resource
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.errors import StateError
from llmos_stream.storage.spool import BLOCK, Spool, Spools
from llmos_stream.wire import RECORD_COST, Assembler, Message, message_id, pack_prelude, split
from tests.storage.aids import file_bytes, memory_left
from tests.wire.heads import PROPERTY, update
from tests.wire.records import admit_all, only_message, payload_of, topic

MIB = 1 << 20


def _descriptors(folder: Path) -> int:
    """How many lead to a file that is, or was, in this folder; other tests' garbage gives up its own at any time."""
    return sum(os.path.realpath(link).startswith(f"{folder}/") for link in Path("/proc/self/fd").iterdir())


def _content(spool: Spool) -> bytes:
    return b"".join(spool)


def _filled(spools: Spools, byte: int, size: int, part: int = 300_000) -> Spool:
    spool = spools.new()
    for begin in range(0, size, part):
        spool.append(memoryview(bytes([byte]) * min(part, size - begin)))
    return spool


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=2000)), max_size=40), st.integers(0, 20_000)
)
def test_many_spools_at_once_keep_what_each_was_given(parts: list[tuple[int, bytes]], memory: int) -> None:
    spools = Spools(memory)
    all_of_them = [spools.new() for _ in range(4)]
    given_to = [b""] * 4
    for number, part in parts:
        all_of_them[number].append(memoryview(part))
        given_to[number] += part
        assert memory_left(spools) >= 0
    for _ in range(2):
        assert [_content(spool) for spool in all_of_them] == given_to
    for spool in all_of_them:
        spool.close()
    assert memory_left(spools) == memory


def test_memory_first_and_then_the_file() -> None:
    spools = Spools(2 * (1000 + RECORD_COST))
    spool, other = spools.new(), spools.new()
    kept = memoryview(b"a" * 1000)
    spool.append(kept)
    other.append(memoryview(b"b" * 1000))
    assert (memory_left(spools), file_bytes(spools)) == (0, 0)
    spool.append(memoryview(b"c" * 1000))
    assert file_bytes(spools) == BLOCK
    assert next(iter(spool)) is kept  # no copy
    other.close()
    spool.append(memoryview(b"d" * 1000))  # in order, so behind what lies in the file
    assert memory_left(spools) == 1000 + RECORD_COST
    assert _content(spool) == b"a" * 1000 + b"c" * 1000 + b"d" * 1000


def test_nothing_is_opened_while_memory_suffices(tmp_path: Path) -> None:
    spool = _filled(Spools(MIB, tmp_path / "not there"), 1, 500_000)
    assert len(_content(spool)) == 500_000


def test_thousands_of_small_ones_take_one_descriptor(tmp_path: Path) -> None:
    spools = Spools(0, tmp_path)
    first = _filled(spools, 1, 10)
    assert _descriptors(tmp_path) == 1
    others = [_filled(spools, number % 256, 10) for number in range(2000)]
    assert _descriptors(tmp_path) == 1
    assert {len(_content(spool)) for spool in [first, *others]} == {10}
    assert list(tmp_path.iterdir()) == []  # nothing that a kill could leave


def test_parts_of_the_file_are_read_in_pieces() -> None:
    spool = _filled(Spools(0), 7, 3 * MIB + 5)
    assert [len(part) for part in spool] == [MIB, MIB, MIB, 5]
    assert _content(spool) == b"\x07" * (3 * MIB + 5)


def test_closing_gives_memory_and_file_back() -> None:
    spools = Spools(MIB)
    big = _filled(spools, 1, 100 * MIB, 900_000)
    assert file_bytes(spools) > 98 * MIB
    assert memory_left(spools) < 900_000
    big.close()
    big.close()
    assert memory_left(spools) == MIB
    assert file_bytes(spools) <= 32 * MIB
    with pytest.raises(ValueError, match="closed"):
        next(iter(big))
    with pytest.raises(ValueError, match="closed"):
        big.append(b"x")


def test_a_walk_ends_with_an_error_when_its_spool_is_closed() -> None:
    spools = Spools(0)
    spool = _filled(spools, 1, 3 * MIB)
    walk = iter(spool)
    next(walk)
    spool.close()
    _filled(spools, 2, 3 * MIB)  # what it would read
    with pytest.raises(ValueError, match="closed"):
        next(walk)


def test_what_nobody_refers_to_is_given_back() -> None:
    spools = Spools(MIB)
    spool = _filled(spools, 1, 50 * MIB)
    in_a_circle: list[object] = [spool]
    in_a_circle.append(in_a_circle)
    del spool, in_a_circle
    gc.collect()
    assert memory_left(spools) == MIB
    assert file_bytes(spools) <= 32 * MIB


def test_blocks_are_used_again() -> None:
    spools = Spools(0)
    for round_number in range(20):
        one, other = _filled(spools, round_number, 5 * MIB), _filled(spools, 100 + round_number, 5 * MIB)
        assert _content(one) == bytes([round_number]) * 5 * MIB
        one.close()
        assert _content(other) == bytes([100 + round_number]) * 5 * MIB
    assert file_bytes(spools) <= 20 * MIB


def test_the_file_goes_with_the_last_of_them(tmp_path: Path) -> None:
    spool = _filled(Spools(0, tmp_path), 1, MIB)
    assert _descriptors(tmp_path) == 1
    assert len(_content(spool)) == MIB
    del spool
    assert _descriptors(tmp_path) == 0


def test_threads_fill_read_and_close_their_own() -> None:
    spools, wrong = Spools(3 * MIB), []

    def work(byte: int) -> None:
        for size in (MIB, 3 * MIB, 100, 2 * MIB + 1):
            spool = _filled(spools, byte, size, 70_001)
            if _content(spool) != bytes([byte]) * size:
                wrong.append((byte, size))
            spool.close()

    threads = [threading.Thread(target=work, args=(byte,)) for byte in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert memory_left(spools) == 3 * MIB


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # Python ignores the signal: writing fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_remedy_and_what_is_there_stays(tmp_path: Path) -> None:
    spools = Spools(0, tmp_path)
    spool = _filled(spools, 1, MIB)
    with (
        _files_of_at_most(MIB + 5000),
        pytest.raises(StateError, match=r"wire\.spool_dir: .* cannot be written in .*File too large.*another folder"),
    ):
        spool.append(b"x" * 10_000)
    assert _content(spool) == b"\x01" * MIB
    spool.append(b"y" * 10_000)
    assert _content(spool)[MIB:] == b"y" * 10_000


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"wire\.spool_dir: .*No such file or directory"):
        _filled(Spools(0, tmp_path / "missing"), 1, 10)


def _records(size: int, sender: str = "c") -> Iterator[bytes]:
    """The records of a message of zeros, made one at a time."""
    prelude = pack_prelude(update(client_id=sender, payload_size=size))
    payload = (bytes(min(MIB, size - begin)) for begin in range(0, size, MIB))
    return split(prelude, payload, size, message_id(sender, 0), 960 * 1024)


def test_a_message_far_above_the_limit_needs_no_memory_beyond_it() -> None:
    spools = Spools(8 * MIB)
    assembler = Assembler(admit_all, 1 << 30, store=spools.new, hashes=True)
    message = None
    tracemalloc.start()
    try:
        for offset, value in enumerate(_records(200 * MIB)):
            for outcome in assembler.push(value, key=b"c", partition=0, offset=offset, now=0.0):
                assert isinstance(outcome, Message)
                message = outcome
        assert message is not None
        for _ in range(2):
            assert sum(len(part) for part in message.parts) == 200 * MIB
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB
    message.parts.close()
    assert memory_left(spools) == 8 * MIB


def test_dropping_expiring_and_forgetting_give_back_what_is_stored() -> None:
    spools = Spools(100_000)
    reader = topic(max_pending_bytes=4 * MIB, max_idle_seconds=10, store=spools.new)
    values = {name: list(_records(3 * MIB, name)) for name in "abc"}
    for partition, name in enumerate("ab"):
        reader.push(values[name][:2], partition)
    reader.push(values["c"][:2], 0)  # pushes out a
    assert reader.assembler.pending_messages == 2
    reader.assembler.forget(1)
    reader.now = 11.0
    assert len(reader.assembler.expire(11.0)) == 1
    assert memory_left(spools) == 100_000
    reader.push(values["a"][:2])
    reader.push(values["a"][:1])  # begun anew
    reader.push(values["a"][2:3])  # a gap
    assert reader.assembler.pending_messages == 0
    assert memory_left(spools) == 100_000
    message = only_message(reader.push(values["b"]))
    assert sum(map(len, message.parts)) == 3 * MIB
    del message
    assert memory_left(spools) == 100_000


def test_a_head_in_many_chunks_is_read_from_the_file_too() -> None:
    spools = Spools(0)
    reader = topic(store=spools.new, hashes=True)
    payload = payload_of(300)
    prelude = pack_prelude(update(payload_size=300))
    values = list(split(prelude, [payload], 300, message_id("c", 0), 37))
    message = only_message(reader.push(values))
    assert b"".join(message.parts) == payload
