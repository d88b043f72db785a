"""The benchmark of speeches runs, and counts what it says."""

import json
from pathlib import Path

import pytest

from tests.bench.__main__ import main
from tests.training.llm.aids import SENTENCES, write_lines


def _speeches(folder: Path) -> str:
    lines = [{"speaker": f"speaker {number % 2}", "text": f"{text}. " * 40} for number, text in enumerate(SENTENCES)]
    return write_lines(folder / "speeches.jsonl", lines)


SIZES = ["--batch", "1", "--width", "32", "--depth", "1", "--vocabulary", "300"]


@pytest.mark.full
def test_a_model_in_fragments_moves_as_often_in_smaller_pieces(tmp_path: Path) -> None:
    data = ["--data", _speeches(tmp_path), "--held", "300", "--sites", "2", "--seeds", "1"]
    ways = ["--ways", "fragments-1", "fragments-4", "--rounds", "2", "--steps", "4"]
    assert main(["speeches", *data, *SIZES, *ways, "--output", str(tmp_path)]) == 0
    whole, cut = json.loads((tmp_path / "speeches.json").read_text())["reached"]
    assert whole["tokens"] == pytest.approx(cut["tokens"], rel=0.01)
    assert whole["before"] == pytest.approx(cut["before"], rel=1e-4)
    assert cut["peak_up"] < 0.6 * whole["peak_up"]
    assert cut["peak_down"] < 0.6 * whole["peak_down"]


@pytest.mark.full
def test_speeches_from_nothing(tmp_path: Path) -> None:
    longer = ["--lengths", "diloco=2"]
    data = ["--data", _speeches(tmp_path), "--held", "300", "--sites", "2", "--seeds", "1"]
    assert main(["speeches", *data, *SIZES, "--rounds", "2", "--steps", "1", *longer, "--output", str(tmp_path)]) == 0
    found = {one["way"]: one for one in json.loads((tmp_path / "speeches.json").read_text())["reached"]}
    assert set(found) == {"central", "diloco", "sparseloco", "diloco-topk2"}
    for way, one in found.items():
        assert one["tokens"] == pytest.approx(2 * 2 * 63, rel=0.3), way
        assert one["loss"] != one["before"], way
        assert one["before"] == pytest.approx(found["central"]["before"], rel=1e-4), way
    assert found["sparseloco"]["bits_up"] < 0.5
    assert found["diloco"]["bits_up"] > 12
