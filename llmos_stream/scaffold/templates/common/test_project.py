"""The whole federation in this process: an aggregator and two sites, over a broker in memory."""

from pathlib import Path

from llmos_stream.config import load
from llmos_stream.testing import run_sites
from llmos_stream.training import load_task
from llmos_stream.training.local import evaluate

HERE = Path(__file__).parent


def test_two_sites_learn_together(monkeypatch) -> None:
    monkeypatch.chdir(HERE)
    settings = load({"stop": {"max_versions": 30}}, HERE / "llmos.toml")
    model = run_sites(settings, {path.stem: str(path) for path in sorted(HERE.glob("data/site-*"))})

    task = load_task(settings.task, settings.client)
    found = evaluate(model, task.test_batches(64), task.loss, task.metrics())
    assert found["accuracy"] > 0.8, found


def test_the_model_takes_the_example() -> None:
    settings = load(None, HERE / "llmos.toml")
    task = load_task(settings.task, settings.client)
    outputs = task.model().eval()(task.example()[None])
    assert outputs.shape == (1, len(task.options["classes"]))
