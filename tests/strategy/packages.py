"""Packages with rules of their own, installed as pip would unpack them, in a folder that leaves again."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.docs.pages import DOCS, blocks_of


def example() -> str:
    """The module that the documentation shows."""
    (block,) = [block for block in blocks_of(DOCS / "strategy.md") if block.title == "tempered.py"]
    return block.text


@contextlib.contextmanager
def installed(site: Path, name: str, source: str, entry_points: str, version: str = "1.2") -> Iterator[None]:
    """`source` as module and distribution `name`, with `entry_points` as the file of that name has them."""
    site.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(source)
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)
    (info / "RECORD").write_text(f"{name}.py,,\n{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")
    sys.path.insert(0, str(site))
    try:
        yield
    finally:
        sys.path.remove(str(site))
        sys.modules.pop(name, None)
