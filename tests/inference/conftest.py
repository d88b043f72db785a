from pathlib import Path

import pytest

from llmos_stream.testing.language_models import write_tiny_model
from tests.training.llm.aids import SENTENCES


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, which nobody writes to."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder, SENTENCES)
    return folder
