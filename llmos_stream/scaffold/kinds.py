"""The templates there are."""

from collections.abc import Mapping
from typing import NamedTuple


class Kind(NamedTuple):
    """What a template learns from, how its data files end, and what its README says about one's own data."""

    learns_from: str
    suffix: str
    own_data: str


KINDS: Mapping[str, Kind] = {
    "tabular": Kind(
        "rows of a CSV file",
        "csv",
        "Give each site a CSV file with the names of its columns in the first line, and name them in\n"
        "`[task.options]`: `features` (numbers, each with a usual value and its spread), `target` and `classes`.",
    ),
    "image": Kind(
        "images in an .npz file",
        "npz",
        "Give each site an .npz file of `images` (whole numbers from 0 to 255, all of one size) and\n"
        "`labels` (0, 1, ...), and say their size and the names of the classes in `[task.options]`.",
    ),
    "text": Kind(
        "lines of text",
        "txt",
        "Give each site a file of lines, each a class, a tab and a text, and name the classes in\n"
        "`[task.options]`. `words(text)` of the task makes the numbers that `serve` is asked with.",
    ),
}
