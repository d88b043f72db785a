"""Going on through broker trouble, and what is told meanwhile to whoever asks whether the process is ready."""

import pytest

from llmos_stream.errors import BrokerUnavailable, ConfigError, LlmosError
from llmos_stream.runtime import BROKER, Health, Shutdown, retry
from llmos_stream.runtime.retry import keep_trying


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Health:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    health = Health([BROKER])
    monkeypatch.setattr(retry, "met", health.met)
    monkeypatch.setattr(retry, "lost", health.lost)
    return health


async def test_a_broker_that_comes_back_is_there_again(health: Health) -> None:
    seen: list[dict[str, str]] = []

    async def work() -> str:
        seen.append(dict(health.missing))
        if len(seen) < 3:
            raise BrokerUnavailable(f"trouble {len(seen)}")
        return "done"

    assert await keep_trying(work, Shutdown(), "trying again") == "done"
    assert seen == [{BROKER: "not yet"}, {BROKER: "trouble 1"}, {BROKER: "trouble 2"}]
    assert health.ready


async def test_what_a_repeat_would_not_mend_travels_on(health: Health) -> None:
    async def work() -> None:
        raise ConfigError("no")

    with pytest.raises(ConfigError):
        await keep_trying(work, Shutdown(), "trying again")


async def test_a_stop_ends_the_trying(health: Health) -> None:
    shutdown = Shutdown()

    async def work() -> str:
        shutdown.request()
        raise BrokerUnavailable("gone")

    assert await keep_trying(work, shutdown, "trying again") is None
    assert not health.ready


class _Elsewhere(LlmosError):
    retriable = True


async def test_other_trouble_is_another_need(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Health([BROKER, "store"])
    monkeypatch.setattr(retry, "met", both.met)
    monkeypatch.setattr(retry, "lost", both.lost)
    seen: list[str] = []

    async def work() -> str:
        seen.append(both.missing["store"])
        if len(seen) < 2:
            raise _Elsewhere("disk full")
        return "done"

    assert await keep_trying(work, Shutdown(), "trying again", trouble=_Elsewhere, need="store") == "done"
    assert seen == ["not yet", "disk full"]
    assert both.missing == {BROKER: "not yet"}
