"""The store, on a real directory and on fsspec's own in memory: what it keeps, and what it refuses to give back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from safetensors import safe_open
from safetensors.torch import load, load_file

from llmos_stream.codec import Layout, weights_digest
from llmos_stream.config import load as load_settings
from llmos_stream.errors import ConfigError
from llmos_stream.registry import Damaged, NotArchived, StoreUnavailable, VersionStore, open_store
from llmos_stream.registry import store as store_module
from llmos_stream.registry.tensors import file_header, file_pieces, is_exact
from llmos_stream.wire import describe
from tests.registry.aids import AT, MIXED, Folder, store_at, version_of
from tests.roles.aids import LAYOUT

_MODEL = "ward/00000007/model.safetensors"
_ENTRY = "ward/00000007/version.json"


def test_a_version_comes_back_as_it_was(folder: Folder) -> None:
    store, version = store_at(folder.url), version_of(LAYOUT)
    saved = store.save(version, AT)
    assert folder.names() == [_MODEL, _ENTRY]
    entry, weights = store_at(folder.url).load(7)
    assert entry == saved
    assert torch.equal(weights, version.weights)
    assert weights_digest(weights) == version.head.weights_digest
    assert entry.head == orjson.loads(orjson.dumps(describe(version.head)))
    assert entry.head["manifest"][0]["client_id"] == "a"
    assert (entry.layout, entry.at) == (LAYOUT, AT)


@pytest.mark.parametrize("layout", [LAYOUT, MIXED], ids=["float32", "mixed"])
def test_the_file_is_what_safetensors_reads(layout: Layout, tmp_path: Path) -> None:
    version = version_of(layout)
    store_at(f"file://{tmp_path}").save(version, AT)
    expected = layout.unflatten(version.weights)
    found = load_file(tmp_path / _MODEL)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / _MODEL, "pt") as file:
        digest = version.head.weights_digest.hex()
        assert file.metadata() == {"federation": "ward", "version": "7", "weights_digest": digest}


def test_every_tensor_is_aligned_to_its_dtype() -> None:
    header = file_header(MIXED, {})
    assert len(header) % 8 == 0
    entries = orjson.loads(header[8:])
    widths = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
    assert all(
        entry["data_offsets"][0] % widths[entry["dtype"]] == 0 for name, entry in entries.items() if name[0] != "_"
    )


def test_narrow_tensors_come_back_rounded_to_their_dtype(folder: Folder) -> None:
    store, version = store_at(folder.url), version_of(MIXED)
    store.save(version, AT)
    _, weights = store.load(7)
    assert not is_exact(MIXED)
    found, expected = MIXED.unflatten(weights), MIXED.unflatten(version.weights)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_float32_is_written_without_a_copy() -> None:
    version = version_of(LAYOUT)
    pieces = list(file_pieces(version.weights, LAYOUT, {}))
    version.weights.zero_()
    assert not load(b"".join(pieces))["w"].any()


def test_a_tensor_cannot_take_the_name_that_safetensors_keeps() -> None:
    with pytest.raises(ConfigError, match="rename it"):
        file_header(Layout.of({"__metadata__": torch.zeros(1)}), {})


def test_numbers_are_those_that_are_complete(folder: Folder) -> None:
    store = store_at(folder.url)
    assert store.numbers() == []
    for number in (20, 3, 123_456_789):
        store.save(version_of(LAYOUT, number), AT)
    for name in ("00000009/model.safetensors", "x/version.json", "9/version.json", "..0/version.json", "notes.txt"):
        folder.write(f"ward/{name}", b"{}")
    folder.write("other/00000001/version.json", b"{}")
    assert store.numbers() == [3, 20, 123_456_789]
    assert [store.has(number) for number in (3, 9, 1)] == [True, False, False]
    with pytest.raises(NotArchived, match="version 9 is not in the registry"):
        store.load(9)


def test_what_is_deleted_is_gone_and_may_come_back(folder: Folder) -> None:
    store = store_at(folder.url)
    for number in (7, 8):
        store.save(version_of(LAYOUT, number), AT)
    store.delete(7)
    store.delete(6)
    assert store.numbers() == [8]
    assert not any("00000007" in name for name in folder.names())
    store.save(version_of(LAYOUT), AT)
    assert store.load(7)[0].version == 7


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("at", ["/model.safetensors", "/version.json.new"])
def test_a_kill_while_writing_leaves_nothing_to_be_read(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    store, version = store_at(folder.url), version_of(LAYOUT)
    create = VersionStore._create

    def killed(self: VersionStore, path: str) -> Any:
        if path.endswith(at):
            folder.write(f"ward{path.rpartition('ward')[2]}", b"half")
            raise _Killed
        return create(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(VersionStore, "_create", killed)
        with pytest.raises(_Killed):
            store.save(version, AT)
    assert any(name.endswith(at) for name in folder.names())
    assert (store.numbers(), store.has(7)) == ([], False)
    store.save(version, AT)
    assert folder.names() == [_MODEL, _ENTRY]
    assert torch.equal(store.load(7)[1], version.weights)


def test_a_version_that_is_replaced_is_not_there_meanwhile(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a kill would leave the old description beside half of the new file."""
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)

    def fails(*_: object) -> list[bytes]:
        raise OSError("disk full")

    monkeypatch.setattr(store_module, "file_pieces", fails)
    with pytest.raises(StoreUnavailable, match="OSError: disk full"):
        store.save(version_of(LAYOUT), AT)
    assert store.numbers() == []


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [_flip(-1 - 4), _flip(0), _flip(20), lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""],
    ids=["weights", "length", "header", "short", "long", "empty"],
)
def test_a_damaged_file_is_refused(folder: Folder, damage: Callable[[bytes], bytes]) -> None:
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)
    folder.write(_MODEL, damage(folder.read(_MODEL)))
    with pytest.raises(Damaged, match=r"model\.safetensors"):
        store.load(7)


def test_a_missing_file_is_refused(folder: Folder) -> None:
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)
    folder.remove(_MODEL)
    with pytest.raises(Damaged, match=r"model\.safetensors is missing"):
        store.load(7)


def _changed(**changes: object) -> Callable[[bytes], bytes]:
    return lambda data: orjson.dumps(orjson.loads(data) | changes)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "cannot be read"),
        (lambda data: b"[]", "cannot be read"),
        (lambda data: b"\xff\xfe", "cannot be read"),
        (lambda data: data[: len(data) // 2], "cannot be read"),
        (_changed(head={}), "cannot be read"),
        (_changed(head="x"), "cannot be read"),
        (_changed(layout=[["w", [-1], "float32"]]), "cannot be read"),
        (_changed(layout=[["w", [40], "pickle"]]), "cannot be read"),
        (_changed(layout=[["w", [40], "float32"]]), "do not match the layout digest"),
        (_changed(model={"size": 1, "sha256": "00"}), "cannot be read"),
        (_changed(log=None), "cannot be read"),
        (_changed(log={"version": 7, "partition": 0, "offset": -1}), "cannot be read"),
        (_changed(format=2), "is of format 2"),
        (_changed(version=8), "is that of another version"),
        (_changed(federation="other"), "is that of another version"),
    ],
)
def test_a_damaged_description_is_refused(folder: Folder, damage: Callable[[bytes], bytes], reason: str) -> None:
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)
    folder.write(_ENTRY, damage(folder.read(_ENTRY)))
    with pytest.raises(Damaged, match=reason) as caught:
        store.load(7)
    assert "; remove " in str(caught.value)


def test_a_size_that_the_tensors_do_not_have_allocates_nothing(folder: Folder) -> None:
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)
    model = orjson.loads(folder.read(_ENTRY))["model"] | {"size": 5}
    folder.write(_ENTRY, _changed(model=model)(folder.read(_ENTRY)))
    with pytest.raises(Damaged, match="does not say the size"):
        store.load(7)


def test_weights_of_another_version_are_refused_though_the_file_is_whole(folder: Folder) -> None:
    store, version = store_at(folder.url), version_of(LAYOUT)
    version.weights.add_(1)  # not what its head says
    store.save(version, AT)
    with pytest.raises(Damaged, match="do not match the digest of version 7"):
        store.load(7)


def test_a_description_longer_than_any_is_not_read(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_at(folder.url)
    store.save(version_of(LAYOUT), AT)
    monkeypatch.setattr(store_module, "_MAX_ENTRY_BYTES", 100)
    with pytest.raises(Damaged, match="longer than any"):
        store.entry(7)


def test_a_store_that_fails_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = store_at(f"file://{tmp_path}")

    def fails(*_: object, **__: object) -> AbstractFileSystem:
        raise PermissionError(13, "no")

    monkeypatch.setattr(LocalFileSystem, "_open", fails)
    monkeypatch.setattr(LocalFileSystem, "ls", fails)
    for work in (store.numbers, lambda: store.load(1), lambda: store.save(version_of(LAYOUT), AT)):
        with pytest.raises(StoreUnavailable, match=f"the registry at {tmp_path}.*PermissionError") as caught:
            work()
        assert caught.value.retriable


class _Broken(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system with fsspec's own `exists`, whose connection breaks as soon as it has listed a folder."""

    cachable = False

    def ls(self, path: str, detail: bool = True, **_: object) -> list[Any]:
        found = {"name": f"{path}/00000007", "size": None, "type": "directory"}
        return [found] if detail else [found["name"]]

    def info(self, path: str, **_: object) -> dict[str, Any]:
        raise OSError("the connection broke")


def test_a_store_that_does_not_answer_is_not_an_empty_one() -> None:
    store = VersionStore(_Broken(), "/models", "ward")
    assert not store._fs.exists("/models/ward/00000007")  # as fsspec has it
    works = (
        store.numbers,
        lambda: store.has(7),
        lambda: store.delete(7),
        lambda: store.save(version_of(LAYOUT), AT),
    )
    for work in works:
        with pytest.raises(StoreUnavailable, match=r"the registry at /models/ward.*the connection broke"):
            work()


def test_a_file_where_a_version_would_be_is_no_version(folder: Folder) -> None:
    folder.write("ward/00000009", b"")
    store = store_at(folder.url)
    assert (store.numbers(), store.has(9)) == ([], False)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "say where versions are archived"),
        ("nonsense://x", "registry.url: Protocol not known: nonsense"),
        ("ftp://me:secret@host/x", "leave user and password out of it"),
        ("https://secret@host/x", "leave user and password out of it"),
        ("simplecache::https://me:secret@host/x", "leave user and password out of it"),
        ("simplecache::s3://bucket/x::ftp://me:secret@host", "leave user and password out of it"),
        ("s3://bucket/x?token=secret", "leave out what follows"),
        ("https://host/x#secret", "leave out what follows"),
        ("https://[host/secret", "Invalid IPv6 URL"),
        ("github://", "registry.url: "),
        ("zip://a.zip", "registry.url: "),
        ("", "say where versions are archived"),
    ],
)
def test_a_url_that_makes_no_sense(url: str | None, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        open_store(load_settings({"registry": {"url": url}}).registry, "ward")
    assert "secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_plain_path_is_a_folder(tmp_path: Path) -> None:
    store_at(str(tmp_path / "here")).save(version_of(LAYOUT), AT)
    assert (tmp_path / "here" / _ENTRY).is_file()
