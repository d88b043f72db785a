"""The documentation as data: the pages, and the blocks of commands and code in them, in order.

A fenced block names its language. What a comment before it says decides what a test does with it:

    (nothing)                               bash runs it; Python code is executed; `title="NAME"` is written to a file
    <!-- in the background -->              bash runs it beside what follows, until the page ends
    <!-- in the background until "TEXT" --> the next block waits until it has printed TEXT
    <!-- not run: REASON -->                nobody runs it here; its commands are parsed all the same
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "llmos_stream" / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
SHOWN = {"text", "json"}
"""Languages of what is only looked at."""
LANGUAGES = SHOWN | {"bash", "python", "toml", "yaml", "csv", "javascript"}

_BLOCK = re.compile(
    r"^(?:<!-- (?P<how>.*?) -->\n)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_BACKGROUND = re.compile(r'in the background(?: until "(.+)")?')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str | None
    how: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why nobody runs it here."""
        return self.how.removeprefix("not run: ") if self.how.startswith("not run: ") else None

    @property
    def background(self) -> bool:
        return _BACKGROUND.fullmatch(self.how) is not None

    @property
    def until(self) -> str | None:
        """What it prints once what follows may begin."""
        found = _BACKGROUND.fullmatch(self.how)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")),
            found["language"],
            found["title"],
            found["how"] or "",
            found["text"],
        )
        for found in _BLOCK.finditer(text)
    ]


def run_here(page: Path) -> list[Block]:
    """Those that a test runs or writes."""
    return [block for block in blocks_of(page) if block.reason is None and block.language not in SHOWN]


def commands_in(text: str) -> list[str]:
    """The `llmos-stream` commands of a page or a block, in the text's own code too, a line each."""
    joined = text.replace("\\\n", " ")
    lines = [
        line for block in re.findall(r"^```bash.*?\n(.*?)^```$", joined, re.M | re.S) for line in block.splitlines()
    ]
    inline = [" ".join(found.split()) for found in re.findall(r"(?<!`)`(llmos-stream [^`]+)`(?!`)", joined)]
    found = [re.search(r"(?:^|\s)(llmos-stream .*)", line) for line in lines]
    return [item[1] for item in found if item] + inline
