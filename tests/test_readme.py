"""The README says what the code says."""

import re
from pathlib import Path

import pytest

from llmos_stream.cli.main import main
from llmos_stream.cli.settings import markdown
from llmos_stream.config import SECTIONS

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_settings_table_is_the_present_one() -> None:
    """`llmos-stream settings --markdown` prints it anew."""
    assert markdown() in README


def test_the_commands_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    rows = set(re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE))
    assert {"demo", "aggregator", "client", "evaluate", "topics", "versions", "inspect", "broker"} <= commands <= rows


def test_the_seeds_snippet_is_there_as_written() -> None:
    snippet = """\
from llmos_stream import FederatedLearning
fl = FederatedLearning(model, data_loader, optimizer)
for epoch in range(num_epochs):
    fl.train(epoch)
global_model = fl.get_global_model()
"""
    assert snippet in README


def test_settings_named_in_the_text_exist() -> None:
    for section, field in re.findall(r"`(?:--)?([a-z_]+)\.([a-z_-]+)(?: [^`]*)?`", README):
        if section in SECTIONS:
            assert field.replace("-", "_") in SECTIONS[section].model_fields, f"{section}.{field}"
