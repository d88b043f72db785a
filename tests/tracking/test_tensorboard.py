"""`tensorboard:FOLDER`, read back as the viewer does."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llmos_stream.tracking.sink import END, SETTINGS
from llmos_stream.tracking.tensorboard import TensorBoard
from tests.tracking.places import RUN, in_steps, points, put


def test_tensorboard(tmp_path: Path) -> None:
    in_steps(lambda: TensorBoard(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.iterdir())) == 3
    read = EventAccumulator(str(folder), {"scalars": 0, "tensors": 0})
    read.Reload()
    tags = read.Tags()
    assert set(tags["scalars"]) == {"version/contributions", "client/ward-7/loss", "evaluation/accuracy"}
    for name in tags["scalars"]:
        found = [(scalar.step, round(1000 * scalar.wall_time), scalar.value) for scalar in read.Scalars(name)]
        assert found == [
            (point.step, point.time_ms, pytest.approx(point.value)) for point in points(0, 8) if point.name == name
        ]
    settings = [item.tensor_proto.string_val[0].decode() for item in read.Tensors(SETTINGS)]
    assert ["| aggregation.buffer_size | 4 |" in text for text in settings] == [True, False]
    assert "finished: target" in read.Tensors(END)[0].tensor_proto.string_val[0].decode()


def test_tensorboard_goes_on_after_a_file_that_was_cut_off(tmp_path: Path) -> None:
    put(TensorBoard(tmp_path), points(0, 4))
    (path,) = (tmp_path / RUN.name).iterdir()
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"evaluation/accuracy") + 3])
    assert put(TensorBoard(tmp_path), points(0, 4)) >= 1
    assert put(TensorBoard(tmp_path), points(0, 4)) == 0
