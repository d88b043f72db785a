"""Versions to archive, and stores to archive them in."""

import uuid
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.memory import MemoryFileSystem

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.log import Pointer
from llmos_stream.log.versions import Origin, Version, decode_version, encode_version, local_rule
from llmos_stream.registry import VersionStore, open_store
from llmos_stream.types import Contribution
from tests.roles.aids import settings_for

MIXED = Layout.of(
    {
        "narrow": torch.zeros(3, dtype=torch.bfloat16),
        "w": torch.zeros(40),
        "none": torch.zeros(0, 4),
        "scalar": torch.zeros(()),
        "half": torch.zeros(5, dtype=torch.float16),
        "wide": torch.zeros(2, 2, dtype=torch.float64),
    }
)
AT = Pointer(7, 0, 120, Pointer(4, 0, 80))


def registry_settings(url: str, federation: str = "ward", **registry: Any) -> Settings:
    return settings_for(federation, registry={"url": url, **registry})


def store_of(settings: Settings) -> VersionStore:
    return open_store(settings.registry, settings.federation.name)


def store_at(url: str, federation: str = "ward") -> VersionStore:
    return store_of(registry_settings(url, federation))


def version_of(layout: Layout, number: int = 7) -> Version:
    """A version of random weights with a manifest."""
    weights = torch.randn(layout.numel, generator=torch.Generator().manual_seed(number))
    item = Contribution("a", 3, 0, 55, 30, 1, 21.2, 1.0, bytes(32))
    origin = Origin(number - 1, (item,), local_rule(settings_for("ward")).record(), 1_700_000_000_000)
    return decode_version(*encode_version(number, weights, layout, origin))


class Folder:
    """What lies under a URL, to be looked at and damaged."""

    def __init__(self, kind: str, path: Path) -> None:
        self._path = path if kind == "file" else None
        self._base = f"/{uuid.uuid4().hex}"
        self.url = f"file://{path}" if kind == "file" else f"memory:/{self._base}"

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes() if self._path else self._memory().cat_file(f"{self._base}/{name}")

    def write(self, name: str, data: bytes) -> None:
        if self._path:
            (self._path / name).parent.mkdir(parents=True, exist_ok=True)
            (self._path / name).write_bytes(data)
        else:
            self._memory().pipe_file(f"{self._base}/{name}", data)

    def remove(self, name: str) -> None:
        (self._path / name).unlink() if self._path else self._memory().rm_file(f"{self._base}/{name}")

    def names(self) -> list[str]:
        if self._path:
            return sorted(str(path.relative_to(self._path)) for path in self._path.rglob("*") if path.is_file())
        return sorted(path.removeprefix(f"{self._base}/") for path in self._memory().find(self._base))

    @staticmethod
    def _memory() -> MemoryFileSystem:
        return MemoryFileSystem()
