"""The snippets of docs/loop.md that need a library, for the tests of that library."""

from typing import Any

from tests.docs.pages import DOCS, blocks_of


def run_snippet(library: str, names: dict[str, Any]) -> None:
    """Run the page's snippet for a library, with what a reader has already as `names`."""
    (snippet,) = (block for block in blocks_of(DOCS / "loop.md") if block.reason == f"the tests of {library} do")
    exec(compile(snippet.text, str(snippet), "exec"), names)  # noqa: S102  it is this package's own page
