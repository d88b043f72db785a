"""Who the clients are: how slow, when there, over which links. A few numbers each, so that there may be millions."""

import math

import numpy as np
from numpy.typing import NDArray

from llmos_stream.errors import ConfigError
from llmos_stream.simulation.settings import RunSettings, SpeedSettings
from llmos_stream.training.seeds import derive_seed

Numbers = NDArray[np.float32]
_BITS_PER_MBIT = 1e6
_DRAWN = 4096


class Chance:
    """Numbers from 0 to 1 for all that happens by chance in one run, drawn many at a time."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(derive_seed(seed, "simulation.events"))
        self._drawn: list[float] = []

    def next(self) -> float:
        """The next one."""
        if not self._drawn:
            self._drawn = self._generator.random(_DRAWN).tolist()
        return self._drawn.pop()


class Population:
    """The clients of one run, by number."""

    def __init__(self, settings: RunSettings, seed: int) -> None:
        self._count = settings.population.clients
        self._seed = seed
        self._speed = settings.speed
        self._there = settings.availability
        self._links = settings.links
        self.slowness = self._slownesses(settings.speed)
        there = settings.availability
        self._phase = self._of("phase").random(self._count, np.float32) if there.period_seconds else None
        self.joins_at = self._of("join").random(self._count, np.float32) * np.float32(there.join_seconds)
        self._leaves_at: Numbers | None = None
        if there.stay_seconds:
            stays = self._of("leave").standard_exponential(self._count, np.float32) * np.float32(there.stay_seconds)
            self._leaves_at = self.joins_at + stays
        self._width = self._lognormal("link", settings.links.sigma) if settings.links.sigma else None

    def _of(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self._seed, f"simulation.{purpose}"))

    def _lognormal(self, purpose: str, sigma: float) -> Numbers:
        found: Numbers = np.exp(self._of(purpose).standard_normal(self._count, np.float32) * np.float32(sigma))
        return found

    def _slownesses(self, speed: SpeedSettings) -> Numbers:
        if speed.source == "lognormal":
            return self._lognormal("speed", speed.sigma)
        if speed.source == "classes":
            shares, values = zip(*speed.classes, strict=True)
            kinds = np.repeat(
                np.arange(len(values)), np.diff(np.round(np.cumsum([0, *shares]) * self._count)).astype(int)
            )
            return self._of("speed").permutation(np.asarray(values, np.float32)[kinds])
        return np.resize(_trace(speed), self._count)

    def training_seconds(self, client: int, examples: int, chance: float) -> float:
        """How long a training on so many examples takes; `chance` is from 0 to 1."""
        own = self._speed
        work = own.seconds + own.seconds_per_example * examples
        return float(self.slowness[client]) * work * (1 + own.jitter * (2 * chance - 1))

    def upload_seconds(self, client: int, size: int) -> float:
        """How long it takes to send so many bytes."""
        return self._transfer(client, size, self._links.upload_mbit)

    def download_seconds(self, client: int, size: int) -> float:
        """How long it takes to receive so many bytes."""
        return self._transfer(client, size, self._links.download_mbit)

    def _transfer(self, client: int, size: int, mbit: float | None) -> float:
        if mbit is None:
            return self._links.latency_seconds
        width = 1.0 if self._width is None else float(self._width[client])
        return self._links.latency_seconds + 8 * size / (mbit * width * _BITS_PER_MBIT)

    def there_from(self, client: int, now: float) -> float:
        """From when on this client is there: `now` where it is, infinity where it has left for good."""
        if self._leaves_at is not None and now >= self._leaves_at[client]:
            return math.inf
        now = max(now, float(self.joins_at[client]))
        period = self._there.period_seconds
        if self._phase is None or period is None:
            return now
        at = (now / period + float(self._phase[client])) % 1.0
        return now if at < self._there.online_share else now + (1.0 - at) * period


def _trace(speed: SpeedSettings) -> Numbers:
    if isinstance(speed.trace, tuple):
        return np.asarray(speed.trace, np.float32)
    try:
        values = np.loadtxt(str(speed.trace), dtype=np.float32, ndmin=1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"speed.trace: {error}") from None
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or not (values > 0).all():
        raise ConfigError(f"speed.trace: {speed.trace} must hold one positive number a line")
    return values
