"""What `llmos-stream track` refuses, in one line."""

import sys
from pathlib import Path

import pytest

from tests.cli.aids import Run


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mlflw:x", "no tracker 'mlflw'; did you mean mlflow?"),
        ("csv", "csv needs a place: csv:FOLDER"),
        ("csv:", "csv needs a place: csv:FOLDER"),
        ("mlflow:https://me:secret@host", "leave user and password out of it"),
    ],
)
def test_a_place_that_makes_no_sense(llmos: Run, target: str, said: str) -> None:
    done = llmos("track", "--to", target)
    assert done.status == 2
    assert said in done.error()
    assert "secret" not in done.err


@pytest.mark.parametrize(
    ("target", "library", "extra"),
    [
        ("mlflow:x", "mlflow", "mlflow"),
        ("tensorboard:x", "tensorboard", "tensorboard"),
        ("wandb-offline:x", "wandb", "wandb"),
    ],
)
def test_a_library_that_is_missing(
    llmos: Run, target: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("mlflow", "tensorboard", "wandb_offline"):
        monkeypatch.delitem(sys.modules, f"llmos_stream.tracking.{name}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    done = llmos("track", "--to", target)
    assert done.status == 2
    assert done.error() == f"--to {target}: needs {library}; install it from the clone: pip install -e '.[{extra}]'"


def test_a_broker_that_does_not_answer(
    llmos: Run, nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", nobody)
    done = llmos("track", "--to", f"csv:{tmp_path}", "--broker.connect-timeout-seconds", 1)
    assert done.status == 3
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
