"""The clients of a demonstration, which differ in data, speed and presence."""

from dataclasses import dataclass
from typing import Any

from llmos_stream.config import ClientSettings, Settings
from llmos_stream.errors import ConfigError

SLOW = 0.1
_LATE_SECONDS = 6.0
_LEAVING_UPDATES = 8


@dataclass(frozen=True, slots=True)
class ClientMix:
    """How many clients there are, and how many of them are slow, join late or leave early."""

    clients: int = 8
    slow: int = 2
    late: int = 1
    leaving: int = 1

    def __post_init__(self) -> None:
        if self.clients < 1:
            raise ConfigError(f"--clients: {self.clients} is not at least 1")
        if min(self.slow, self.late, self.leaving) < 0 or self.slow + self.late + self.leaving > self.clients:
            raise ConfigError(
                f"--slow, --late, --leaving: none below 0, and together not more than --clients ({self.clients})"
            )

    @classmethod
    def fitting(cls, clients: int, slow: int | None, late: int | None, leaving: int | None) -> "ClientMix":
        """Fill what is None with its default, as far as one client stays without a trait."""
        usual = cls()
        left = clients - 1 - sum(count for count in (slow, late, leaving) if count is not None)
        counts = []
        for asked, default in ((slow, usual.slow), (late, usual.late), (leaving, usual.leaving)):
            counts.append(min(default, max(left, 0)) if asked is None else asked)
            left -= counts[-1] if asked is None else 0
        return cls(clients, *counts)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Settings for the aggregator and the evaluator, and for each client."""

    settings: Settings
    clients: tuple[Settings, ...]


def make_scenario(settings: Settings, mix: ClientMix) -> Scenario:
    """One client a shard. The last ones are slow, those before join late, those before leave early."""
    # The environment may name a client's shard, which need not be one of these.
    settings = settings.changed(task={"shards": mix.clients}, client={"shard": 0})
    clients = (settings.changed(client=_client(settings.client, shard, mix)) for shard in range(mix.clients))
    return Scenario(settings, tuple(clients))


def _client(base: ClientSettings, shard: int, mix: ClientMix) -> dict[str, Any]:
    from_end = mix.clients - 1 - shard
    traits: dict[str, Any] = {}
    name = f"client-{shard}"
    if from_end < mix.slow:
        name, traits = f"{name}-slow", {"speed": base.speed * SLOW}
    elif from_end < mix.slow + mix.late:
        name, traits = f"{name}-late", {"join_delay_seconds": _LATE_SECONDS}
    elif from_end < mix.slow + mix.late + mix.leaving:
        name, traits = f"{name}-leaving", {"max_updates": _LEAVING_UPDATES}
    return {"shard": shard, "id": name, **traits}
