"""What a client has done as it saw it, on disk before it goes on: the judge believes this, and the log."""

import os
from pathlib import Path
from typing import Literal

Stage = Literal["begun", "sending", "published"]


class Journal:
    """One line for each stage of each update. It outlives every kill of the client."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, stage: Stage, number: int) -> None:
        with self._path.open("ab") as file:
            file.write(f"{stage} {number}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def numbers(self, *stages: Stage) -> set[int]:
        """The updates that have reached one of these stages."""
        if not self._path.exists():
            return set()
        lines = [line.split() for line in self._path.read_text().splitlines()]
        return {int(number) for stage, number in lines if stage in stages}
