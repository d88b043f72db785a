"""`llmos-stream docs`: the documentation that ships with the package, without a network."""

import argparse
from importlib.resources import files

from llmos_stream.cli.common import Commands, add_command, out, plain_table, print_json, say, show_table
from llmos_stream.config import Settings, did_you_mean
from llmos_stream.errors import NotFound

_FOLDER = files("llmos_stream") / "docs"


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "docs",
        _run,
        text="list the pages of the documentation, or show one of them",
        sections=(),
        examples="  llmos-stream docs\n  llmos-stream docs tutorial\n  llmos-stream docs settings | less",
    )
    parser.add_argument("page", nargs="?", help="name of a page; without one the pages are listed")


def _run(arguments: argparse.Namespace, _settings: Settings) -> int:
    texts = {item.name.removesuffix(".md"): item.read_text("utf-8") for item in _FOLDER.iterdir() if ".md" in item.name}
    if arguments.page is None:
        _show_list({name: texts[name].partition("\n")[0].removeprefix("# ") for name in sorted(texts)}, arguments.json)
    elif (text := texts.get(arguments.page.removesuffix(".md"))) is None:
        raise NotFound(
            f"there is no page {arguments.page!r}{did_you_mean(arguments.page, texts)}; see llmos-stream docs"
        )
    elif arguments.json:
        print_json({"page": arguments.page, "text": text})
    elif out().is_terminal:
        from rich.markdown import Markdown

        out().print(Markdown(text))
    else:
        say(text.rstrip("\n"))
    return 0


def _show_list(titles: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"folder": str(_FOLDER), "pages": titles})
        return
    say(f"The pages are Markdown files in {_FOLDER}\n")
    table = plain_table("page", "title")
    for name, title in titles.items():
        table.add_row(name, title)
    show_table(table)
