"""The README says what the code says."""

import re
from pathlib import Path

import pytest

from llmos_stream.cli.main import main
from llmos_stream.cli.settings import markdown
from llmos_stream.config import SECTIONS

_ROOT = Path(__file__).parent.parent
README = (_ROOT / "README.md").read_text()


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


def test_the_table_of_rooms_is_the_tree() -> None:
    table = README.partition("| room | its one job |")[2].partition("\n\n")[0]
    named = [name for row in re.findall(r"^\|(.*?)\|", table, re.MULTILINE) for name in re.findall(r"`([\w./]+)`", row)]
    package = _ROOT / "llmos_stream"
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in package.glob("[!_]*.py")}
    assert sorted(named) == sorted(folders | modules | {"../services/"})
