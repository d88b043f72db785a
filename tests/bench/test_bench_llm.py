"""The benchmark of adapters runs over Kafka, and counts what it says."""

import json
from pathlib import Path

import pytest

from llmos_stream.testing.language_models import write_tiny_model
from tests.bench.__main__ import main
from tests.conftest import KafkaNode
from tests.training.llm.aids import SENTENCES, write_lines

pytestmark = pytest.mark.full


def _speeches(folder: Path) -> str:
    lines = [{"speaker": f"speaker {number % 2}", "text": f"{text}. " * 40} for number, text in enumerate(SENTENCES)]
    return write_lines(folder / "speeches.jsonl", lines)


@pytest.mark.kafka
def test_adapters_of_several_sites(kafka: KafkaNode, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", SENTENCES)
    data = ["--data", _speeches(tmp_path), "--model", str(tmp_path / "model"), "--sites", "2", "--most", "1500"]
    sizes = ["--rounds", "1", "--steps", "2", "--batch", "2", "--sequence", "16", "--lr", "0.01"]
    where = ["--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]
    assert main(["llm", *data, *sizes, "--ways", "central", "alone", "ffa", *where]) == 0
    written = json.loads((tmp_path / "llm.json").read_text())
    reached = {one["way"]: one for one in written["reached"]}
    assert [one["before"] is None for one in reached.values()] == [False, True, True]
    held = [[tokens for _, tokens in one["losses"]] for one in reached.values()]
    assert held[0] == held[1] == held[2]
    assert 0 < reached["ffa"]["update_mb"] < reached["ffa"]["lora_mb"]
    central = written["tables"][0]["rows"][0]
    assert float(central[1]) < reached["central"]["before"]
