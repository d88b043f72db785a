"""The page's example, run as the test that it is."""

import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest


async def test_the_example_of_the_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = files("llmos_stream.testing").joinpath("README.md").read_text()
    _, begun, rest = page.partition("```python\n")
    assert begun
    (tmp_path / "page_example.py").write_text(rest.partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        await import_module("page_example").test_a_large_client_has_one_voice()
    finally:
        sys.modules.pop("page_example", None)
