"""`wandb-offline:FOLDER`, read back with the library's own records."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from llmos_stream.reporting.history.points import Point
from llmos_stream.tracking.wandb_offline import WandbOffline, records
from tests.tracking.places import RUN, expected, in_steps


def _wandb_rows(root: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((root / "wandb").glob(f"offline-run-*-{RUN.name}/run-{RUN.name}.wandb")):
        for data in records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.full
@pytest.mark.timeout(300)
def test_wandb_offline(tmp_path: Path) -> None:
    in_steps(lambda: WandbOffline(tmp_path))
    found = set()
    for row in _wandb_rows(tmp_path):
        step, time_ms = row.pop("version"), round(1000 * row.pop("_timestamp"))
        found |= {Point(name, step, time_ms, value) for name, value in row.items() if not name.startswith("_")}
    assert found == expected()
