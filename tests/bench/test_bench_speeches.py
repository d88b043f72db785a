"""The benchmark of speeches runs, and counts what it says."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import main
from tests.training.llm.aids import SENTENCES, write_lines


def _speeches(folder: Path) -> str:
    lines = [{"speaker": f"speaker {number % 2}", "text": f"{text}. " * 40} for number, text in enumerate(SENTENCES)]
    return write_lines(folder / "speeches.jsonl", lines)


@pytest.mark.full
def test_speeches_from_nothing(tmp_path: Path) -> None:
    data = ["--data", _speeches(tmp_path), "--held", "300", "--sites", "2", "--seeds", "1"]
    sizes = ["--rounds", "2", "--steps", "1", "--batch", "1", "--width", "32", "--depth", "1", "--vocabulary", "300"]
    assert main(["speeches", *data, *sizes, "--output", str(tmp_path)]) == 0
    found = {one["way"]: one for one in json.loads((tmp_path / "speeches.json").read_text())["reached"]}
    assert set(found) == {"central", "diloco", "sparseloco", "diloco-topk2"}
    for way, one in found.items():
        assert one["tokens"] == pytest.approx(2 * 2 * 63, rel=0.3), way
        assert one["loss"] != one["before"], way
        assert one["before"] == pytest.approx(found["central"]["before"], rel=1e-4), way
    assert found["sparseloco"]["bits_up"] < 0.5
    assert found["diloco"]["bits_up"] > 12
