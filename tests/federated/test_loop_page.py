"""The snippets of docs/loop.md run as they stand, in their order."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import llmos_stream

_PAGE = (Path(llmos_stream.__file__).parent / "docs/loop.md").read_text()
_SNIPPETS = re.findall(
    r"^(?:<!-- not run: the tests of (\w+) do -->\n)?```python\n(.*?)^```$", _PAGE, re.DOTALL | re.MULTILINE
)


def snippets(of: str = "") -> list[str]:
    found = [text for library, text in _SNIPPETS if library == of]
    assert found, of
    return found


def test_the_snippets_run(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for snippet in snippets():
        exec(compile(snippet, "loop.md", "exec"), names)  # noqa: S102  it is this package's own page
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4
    assert said[0].startswith("max_versions")
    assert said[1].startswith("0 ")


def test_the_snippet_for_accelerate_runs() -> None:
    inputs = torch.randn(64, 4)
    model = nn.Linear(4, 2)
    names: dict[str, Any] = {
        "nn": nn,
        "FederatedLearning": llmos_stream.FederatedLearning,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loader": DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=16),
    }
    before = model.weight.detach().clone()
    exec(compile(snippets("accelerate")[0], "loop.md", "exec"), names)  # noqa: S102
    assert not torch.equal(model.weight, before)
    assert names["update"].sequence is not None
