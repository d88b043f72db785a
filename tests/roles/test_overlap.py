"""With `client.overlap` a client trains on while its update is on a slow link, and every update still counts once."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.config import Settings
from llmos_stream.log import RunEnd
from llmos_stream.roles.client import ClientState
from llmos_stream.testing import until
from llmos_stream.training.shared_model import LocalModel
from tests.roles.aids import settings_for
from tests.roles.test_client_life import Life, Step

LINK_SECONDS = 8.0


def _settings(**client: Any) -> Settings:
    given = {"id": "c", "wait_seconds": 4.0, "overlap": True, **client}
    return settings_for("life", task={"entry": "noop:100"}, client=given, staleness={"maximum": 9})


async def _slow() -> None:
    await asyncio.sleep(LINK_SECONDS)  # of virtual time


def test_a_training_ends_while_an_update_is_held_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    train, trainings = LocalModel.train, 0
    at_sending: list[int] = []

    def counted(*args: Any) -> Any:
        nonlocal trainings
        trained = train(*args)
        trainings += 1
        return trained

    async def held() -> None:
        wanted = min(len(at_sending) + 2, 3)  # one more than was trained when this update was; the third is the last
        await until(lambda: trainings >= wanted)
        at_sending.append(trainings)

    monkeypatch.setattr(LocalModel, "train", counted)
    life = Life(_settings(max_updates=3), link=held)
    life.run([(0.0, 0)])
    assert at_sending == [2, 3, 3]  # and no more than one update waited behind the one in flight
    assert len({head.sequence for head in life.heads}) == len(life.heads) == 3


@pytest.mark.parametrize(("overlap", "seconds"), [(False, 16.0), (True, 8.0)])
def test_a_round_takes_as_long_as_the_longer_of_training_and_sending(overlap: bool, seconds: float) -> None:
    settings = _settings(overlap=overlap, min_train_seconds=8.0, max_updates=6)
    versions: list[Step] = [(4.0 * number, number) for number in range(30)]
    life = Life(settings, link=_slow)
    life.run(versions)
    for (earlier, _), (later, _) in pairwise(life.sent):
        assert later - earlier == pytest.approx(seconds, abs=1.0)


@pytest.mark.parametrize("last", ["stop", RunEnd("target", "", 0)])
def test_the_end_waits_for_what_is_in_flight(last: str | RunEnd) -> None:
    life = Life(_settings(min_train_seconds=1.0), link=_slow)
    life.run([(0.0, 0), (7.0, last)])
    assert [base for _, base in life.sent] == [0]
    (left,) = life.left
    assert left[0] >= life.sent[0][0]


def test_what_was_in_flight_at_the_end_of_a_process_goes_first_in_the_next(tmp_path: Path) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    first = Life(_settings(min_train_seconds=1.0), tmp_path, link=never)
    first.run([(0.0, 0), (20.0, "stop")])
    assert first.sent == []
    with ClientState("c", tmp_path) as state:
        unsent = state.unsent()
    assert unsent is not None
    second = Life(_settings(min_train_seconds=1.0, max_updates=2), tmp_path)
    second.run([(0.0, 0)])
    assert [head.sequence for head in second.heads] == [unsent.head.sequence, unsent.head.sequence + 1]
    assert second.heads[0] == unsent.head
