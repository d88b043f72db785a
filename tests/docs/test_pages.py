"""The pages say what the code says: settings, commands, links, tables."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from llmos_stream.cli.flags import given_settings
from llmos_stream.cli.main import main
from llmos_stream.config import SECTIONS, load
from tests.cli.fixtures import use_one_parser
from tests.docs.pages import DOCS, LANGUAGES, PAGES, ROOT, blocks_of, commands_in

README = (ROOT / "README.md").read_text()
NOT_RUN = 12
"""How many blocks nobody runs here; each says why. A new one is a decision."""


def _page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(README.encode()) <= 12_000
    pictures = list((DOCS / "images").iterdir())
    assert {picture.name for picture in pictures} >= {"live.webp", "report.webp"}
    assert all(picture.stat().st_size <= 80_000 for picture in pictures)


def test_the_readme_has_the_two_commands() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in ("demo", "test"):
        assert f"```bash\nmake {command}\n```" in README
        assert command in targets


def test_the_seeds_snippet_is_there_as_written() -> None:
    snippet = """\
from llmos_stream import FederatedLearning
fl = FederatedLearning(model, data_loader, optimizer)
for epoch in range(num_epochs):
    fl.train(epoch)
global_model = fl.get_global_model()
"""
    assert snippet in README
    assert snippet in _page("loop")


def test_the_commands_are_all_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = set(re.findall(r"^    ([a-z]+)\b", capsys.readouterr().out, re.MULTILINE))
    rows = set(re.findall(r"^\| `([a-z]+)` \|", _page("commands"), re.MULTILINE))
    assert {"demo", "aggregator", "client", "evaluate", "topics", "versions", "inspect", "broker"} <= commands <= rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_named_in_the_text_exist(page: Path) -> None:
    for section, field in re.findall(r"`(?:--)?([a-z_]+)\.([a-z_-]+)(?: [^`]*)?`", page.read_text()):
        if section in SECTIONS:
            assert field.replace("-", "_") in SECTIONS[section].model_fields, f"{section}.{field}"
    for section, field in re.findall(r"\bLLMOS_([A-Z_]+?)__([A-Z_]+)\b", page.read_text()):
        assert field.lower() in SECTIONS[section.lower()].model_fields, f"{section}__{field}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_it_is_one(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed, and its settings validated, by the command itself; nothing of it runs."""
    for block in blocks_of(page):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    use_one_parser(monkeypatch)
    monkeypatch.setattr("llmos_stream.cli.main.run_command", _only_its_settings)
    for command in commands_in(page.read_text()):
        words = [word for word in shlex.split(_first_of(command), comments=True) if not word.endswith("&")]
        if words[1:2] in (["COMMAND"], ["NAME"]) or words[1:] == ["..."]:
            continue
        try:
            status = main([word.replace("N", "1") if word in {"N", "NAME:N"} else word for word in words[1:]])
        except SystemExit as ended:
            status = int(ended.code or 0)
        assert status == 0, f"{page.name}: {command}"


def _first_of(line: str) -> str:
    """Without what a shell does with its output, and without what follows it."""
    return re.split(r"\s(?:\||>|2>|&&|;)\s?", line)[0]


def _only_its_settings(arguments: argparse.Namespace) -> int:
    load(given_settings(arguments), arguments.config, arguments.defaults)
    return 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_says_what_it_is(page: Path) -> None:
    assert page.read_text().count("\n```") == 2 * len(blocks_of(page)), "a block that cannot be read"
    for block in blocks_of(page):
        assert block.language in LANGUAGES, block
        assert not block.how or block.reason or block.background, f"{block}: {block.how}"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    reasons = [block.reason for page in PAGES for block in blocks_of(page) if block.reason is not None]
    assert all(len(reason) > 10 for reason in reasons)
    assert len(reasons) == NOT_RUN, reasons


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {_anchor(heading) for heading in headings}, f"{page.name}: {target}"


def _anchor(heading: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))


def test_each_page_can_be_found_from_the_readme() -> None:
    for page in DOCS.glob("*.md"):
        assert f"(llmos_stream/docs/{page.name})" in README, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_it_begins_with_its_title(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.MULTILINE)) == 1


def test_the_table_of_rooms_is_the_tree() -> None:
    table = _page("decisions").partition("| room | its one job |")[2].partition("\n\n")[0]
    named = [name for row in re.findall(r"^\|(.*?)\|", table, re.MULTILINE) for name in re.findall(r"`([\w./]+)`", row)]
    package = ROOT / "llmos_stream"
    folders = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()} | {"docs/"}
    modules = {path.stem for path in package.glob("[!_]*.py")}
    assert sorted(named) == sorted(folders | modules | {"../services/"})
