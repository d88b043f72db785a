"""The sample data of the templates: made up, and the same each time.

Two sites see the classes unequally often, so that they have something to learn from one another; the test data have
all of them equally often.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from llmos_stream.scaffold.kinds import KINDS

_SHARES: Mapping[str, tuple[float, float, float]] = {
    "site-a": (0.7, 0.2, 0.1),
    "site-b": (0.1, 0.3, 0.6),
    "test": (1 / 3, 1 / 3, 1 / 3),
}
_EXAMPLES = {"site-a": 240, "site-b": 180, "test": 150}


def write_samples(template: str, folder: Path) -> list[Path]:
    """Write the files of a template into `folder`. Returns them."""
    write, suffix = _WRITERS[template], KINDS[template].suffix
    paths = []
    for seed, (name, shares) in enumerate(_SHARES.items()):
        generator = np.random.Generator(np.random.PCG64(seed))
        classes = generator.choice(3, _EXAMPLES[name], p=shares)
        paths.append(folder / f"{name}.{suffix}")
        write(paths[-1], classes, generator)
    return paths


def _table(path: Path, classes: np.ndarray, generator: np.random.Generator) -> None:
    """Patients: age, temperature (Celsius), pulse and oxygen saturation (percent), and where they went."""
    means = np.array([[38.0, 36.9, 74.0, 97.5], [56.0, 38.4, 92.0, 94.0], [71.0, 38.9, 112.0, 87.0]])
    spreads = np.array([12.0, 0.5, 9.0, 1.8])
    rows = means[classes] + generator.normal(size=(len(classes), 4)) * spreads
    rows[:, 3] = np.minimum(rows[:, 3], 100.0)
    names = ("home", "ward", "intensive")
    lines = [
        f"{age:.0f},{temperature:.1f},{pulse:.0f},{oxygen:.0f},{names[number]}"
        for (age, temperature, pulse, oxygen), number in zip(rows, classes, strict=True)
    ]
    _write_lines(path, ["age,temperature,pulse,oxygen,outcome", *lines])


def _images(path: Path, classes: np.ndarray, generator: np.random.Generator) -> None:
    """Discs, squares and crosses of 16 x 16 pixels, of several sizes and near the middle, in noise."""
    size = 16
    rows, columns = np.mgrid[:size, :size]
    images = np.empty((len(classes), size, size), np.uint8)
    for image, number in zip(images, classes, strict=True):
        down, right, radius = generator.integers(7, 10), generator.integers(7, 10), generator.integers(4, 7)
        y, x = rows - down, columns - right
        shape = (
            x**2 + y**2 <= radius**2,
            np.maximum(abs(x), abs(y)) <= radius - 1,
            (np.minimum(abs(x), abs(y)) <= 1) & (np.maximum(abs(x), abs(y)) <= radius),
        )[number]
        image[:] = np.clip(shape * 200 + generator.normal(30, 10, (size, size)), 0, 255)
    np.savez_compressed(path, images=images, labels=classes.astype(np.int64))


_TEXTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "bill",
        ("the invoice", "my bill", "the payment", "the refund", "the amount"),
        ("is too high", "was charged twice", "does not match the contract", "is not in my account", "has a wrong date"),
    ),
    (
        "delivery",
        ("the parcel", "my order", "the courier", "the package", "the shipment"),
        ("has not arrived", "is late again", "went to a neighbour", "is lost on the way", "came to a wrong address"),
    ),
    (
        "fault",
        ("the device", "the screen", "the battery", "the app", "the charger"),
        ("does not start", "is broken", "makes a noise", "stops after an hour", "shows an error"),
    ),
)
_OPENINGS = ("hello,", "please help:", "since monday", "again", "I noticed that", "")
_CLOSINGS = ("thank you", "what shall I do?", "this is urgent", "please call me", "")


def _lines(path: Path, classes: np.ndarray, generator: np.random.Generator) -> None:
    """Messages to a help desk, and what they are about."""

    def one_of(texts: tuple[str, ...]) -> str:
        return texts[int(generator.integers(len(texts)))]

    lines = []
    for number in classes:
        about, subjects, complaints = _TEXTS[number]
        words = (one_of(_OPENINGS), one_of(subjects), one_of(complaints), one_of(_CLOSINGS))
        lines.append(f"{about}\t{' '.join(word for word in words if word)}")
    _write_lines(path, lines)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_Writer = Callable[[Path, np.ndarray, np.random.Generator], None]
_WRITERS: Mapping[str, _Writer] = {"tabular": _table, "image": _images, "text": _lines}
