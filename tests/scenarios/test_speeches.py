"""The speeches: no text is in two parts, the model looks back alone, and a federation learns from all."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmos_stream.config import Settings
from llmos_stream.scenarios import SCENARIOS, run_study, speeches
from llmos_stream.scenarios.site_task import Examples
from llmos_stream.scenarios.speeches_model import VOCABULARY, CharacterModel, characters
from llmos_stream.scenarios.tables import read_lines
from llmos_stream.training.metrics import Perplexity
from tests.scenarios.small import settings_of


def _task() -> speeches.Speeches:
    settings = settings_of("speeches")
    return speeches.Speeches(settings.task, settings.client)


def _windows(part: Examples) -> list[tuple[int, ...]]:
    assert torch.equal(part.inputs[:, 1:], part.targets[:, :-1])
    whole = torch.cat([part.inputs, part.targets[:, -1:]], dim=1)
    return [tuple(row) for row in whole.tolist()]


@pytest.mark.parametrize("site", ["Ulysses S Grant", "Barack Obama"])
def test_no_character_is_in_two_parts_and_pieces_stay_together(site: str) -> None:
    text = characters(" ".join(row["text"] for row in read_lines("speeches") if row["speaker"] == site))
    places = {tuple(text[at : at + 65].tolist()): at // 65 for at in range(0, len(text) - 64, 65)}
    parts = [[places[window] for window in _windows(part)] for part in _task().split(site)]
    pieces = [{place // 16 for place in part} for part in parts]
    assert sorted(place for part in parts for place in part) == list(range(len(text) // (16 * 65) * 16))
    assert sum(map(len, pieces)) == len(set().union(*pieces))
    assert len(parts[2]) == pytest.approx(0.06 * len(places), rel=0.1)


def test_another_seed_holds_others_back() -> None:
    settings = settings_of("speeches")
    other = speeches.Speeches(settings.changed(task={"seed": 1}).task, settings.client)
    site = speeches.SITES[0]
    assert not torch.equal(other.split(site).test.inputs, _task().split(site).test.inputs)


def test_every_speaker_is_a_site() -> None:
    assert {row["speaker"] for row in read_lines("speeches")} == set(speeches.SITES)


def test_characters_are_a_constant() -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert characters(printable).tolist() == list(range(1, VOCABULARY))
    assert characters("\n\x7f\u2019").tolist() == [0, 0, 0]


def test_what_comes_later_changes_nothing() -> None:
    torch.manual_seed(0)
    model = CharacterModel(12, 16, 4, 2)
    text = torch.randint(0, VOCABULARY, (3, 12))
    other = text.clone()
    other[:, 7] = (other[:, 7] + 1) % VOCABULARY
    before, after = model(text), model(other)
    assert before.shape == (3, VOCABULARY, 12)
    assert torch.equal(before[:, :, :7], after[:, :, :7])
    for place in range(7, 12):
        assert not torch.allclose(before[:, :, place], after[:, :, place])
    assert torch.allclose(model(text[:, :5]), before[:, :, :5], atol=1e-6)


def test_perplexity_counts_characters_whatever_the_batches() -> None:
    outputs, targets = torch.randn(7, 5, 4), torch.randint(0, 5, (7, 4))
    found = Perplexity()
    for some in (slice(0, 1), slice(1, 6), slice(6, 7)):
        found.update(outputs[some], targets[some])
    assert found.compute() == pytest.approx(math.exp(float(cross_entropy(outputs, targets))))
    found.reset()
    found.update(torch.zeros(2, 5, 4), targets[:2])
    assert found.compute() == pytest.approx(5.0)
    found.update(_sure_of_zero(), torch.ones(1, 4, dtype=torch.int64))
    assert found.compute() == math.exp(700.0)


def _sure_of_zero() -> Tensor:
    outputs = torch.zeros(1, 5, 4)
    outputs[:, 0] = 1e6
    return outputs


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Speeches of 18 thousand characters, and a model of one small block."""
    rows = {row["speaker"]: {**row, "text": row["text"][:17_700]} for row in read_lines("speeches")}
    monkeypatch.setattr(speeches, "read_lines", lambda _: tuple(rows.values()))
    monkeypatch.setattr(speeches, "_WIDTH", 16)
    monkeypatch.setattr(speeches, "_BLOCKS", 1)
    speeches._split.cache_clear()
    yield
    speeches._split.cache_clear()


@pytest.mark.full
@pytest.mark.usefixtures("short")
def test_the_federation_beats_its_sites_alone() -> None:
    quick = {"client": {"lr": 0.01, "batch_size": 8, "local_steps": 8}}
    scenario = replace(SCENARIOS["speeches"], seconds=8.0, pooled_epochs=1, alone_epochs=1, defaults=quick)
    study = run_study(scenario, Settings().changed(**quick), [0], lambda _: None, arms=["alone", "asynchronous"])
    alone, together = study.outcomes["alone"][0], study.outcomes["asynchronous"][0]
    assert together.everywhere["perplexity"] < alone.everywhere["perplexity"] < VOCABULARY
    assert together.points[0].metrics["perplexity"] > together.at_home["perplexity"], "nothing was learnt"
    assert list(together.by_site) == list(speeches.SITES)
    assert 0 < together.at_home["accuracy"] < 1
