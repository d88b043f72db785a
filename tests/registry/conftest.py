from pathlib import Path

import pytest

from tests.registry.aids import Folder


@pytest.fixture(params=["file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Each kind of store in turn, empty."""
    return Folder(request.param, tmp_path / "models")
