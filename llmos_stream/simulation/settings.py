"""What a simulated run is made of, beside the settings that the product has anyway: who takes part, on what, how fast.

Times are virtual seconds. Each client draws its properties once, from `seed` alone: all arms of an experiment meet the
same population.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llmos_stream.config import Section, Settings
from llmos_stream.config.base import Count, FilePath, Fraction, Positive
from llmos_stream.config.settings import NAMES

Spread = Annotated[float, Field(ge=0, le=10)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class SimulationSettings(Section):
    name: str = "simulation"
    """What the report is called."""
    seeds: Count = 1
    """How many runs of each arm, with seeds that follow one another."""
    first_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """The first of them."""
    updates: Count = 1000
    """A run ends once the aggregator has received so many updates. `stop` may end it before."""
    seconds: Positive | None = None
    """Or after so many virtual seconds. Unset: no limit."""
    metric: str = "accuracy"
    """What tables, plots and the target look at, of what the task measures."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less of it is better."""
    target: float | None = None
    """Value of the metric whose time, bytes and updates are told."""
    training: Literal["auto", "batched", "loop"] = "auto"
    """batched: many clients' models trained at once. loop: one after the other, as clients do. auto: batched where the
    model can be."""
    at_once: Annotated[int, Field(ge=1, le=4096)] = 64
    """How many clients' models are trained at once at most."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """Where batched training computes. auto: on a GPU where there is one."""
    coded: bool = False
    """Whether updates and versions go through their codecs, as on Kafka. Else they count as they are, and their bytes
    are those of samples that do."""


class PopulationSettings(Section):
    clients: Count = 100
    """How many clients there are."""
    concurrency: Count | None = None
    """How many of them work at a time: each, chosen by chance, makes one update (`client.max_updates`) and leaves.
    Unset: all work all the time, as sites do."""
    together: bool = False
    """Those of them are chosen together, once all before them have left, as for a synchronous round. Else each who
    leaves makes room for another at once."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.concurrency is not None and self.concurrency > self.clients:
            raise ValueError(f"concurrency: there are {self.clients} clients")
        if self.together and self.concurrency is None:
            raise ValueError("together: say of how many (concurrency)")
        return self


class DataSettings(Section):
    split: Literal["dirichlet", "even", "drawn", "task"] = "dirichlet"
    """dirichlet: each class is dealt out by shares of a Dirichlet distribution. even: alike for all. drawn: each
    client draws examples anew by shares of classes of its own, for more clients than there are examples. task: by the
    task's own sites."""
    sites: tuple[str, ...] = ()
    """What each client has as `client.data` (task), from the beginning again where there are more clients. Unset: all
    have shards of the task."""
    alpha: Positive = 0.3
    """Concentration of the Dirichlet distribution: a smaller value skews classes more (dirichlet, drawn)."""
    size_sigma: Spread = 0.0
    """Skew of the number of examples: sigma of a lognormal distribution (even, drawn)."""
    examples: Count = 32
    """Median number of examples of a client (drawn)."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.size_sigma and self.split not in ("even", "drawn"):
            raise ValueError(f"size_sigma: needs split even or drawn; {self.split} has sizes of its own")
        if self.sites and self.split != "task":
            raise ValueError("sites: needs split task")
        return self


class SpeedSettings(Section):
    """A training takes slowness x (seconds + seconds_per_example x examples) x jitter."""

    kind: Literal["lognormal", "classes", "trace"] | None = None
    """Where a client's slowness is from: lognormal with median 1, `classes`, or the file `trace`. Unset: `trace` or
    `classes` where one of them is given, else lognormal."""
    sigma: Spread = 1.0
    """Sigma of the lognormal distribution."""
    classes: tuple[tuple[Fraction, Positive], ...] = ()
    """Kinds of devices: [share of the clients, slowness] each."""
    trace: tuple[Positive, ...] | FilePath | None = None
    """The slowness of each client, or a file with one a line; from the top again where there are more clients."""
    seconds: Seconds = 1.0
    """What each training takes at slowness 1."""
    seconds_per_example: Seconds = 0.0
    """And each example of it."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """One training differs from the next by up to this part, evenly."""

    @property
    def source(self) -> str:
        """Where slowness is from: what is said, else what is given."""
        return self.kind or ("trace" if self.trace else "classes" if self.classes else "lognormal")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.kind is None and self.trace and self.classes:
            raise ValueError("kind: say trace or classes; both are given")
        if self.source == "classes" and abs(sum(share for share, _ in self.classes) - 1) > 1e-6:
            raise ValueError("classes: [share, slowness] each, with shares that sum to 1")
        if self.kind == "trace" and not self.trace:
            raise ValueError("trace: name the file, or a number for each client")
        if not self.seconds and not self.seconds_per_example:
            raise ValueError("seconds: a training must take time")
        return self


class AvailabilitySettings(Section):
    period_seconds: Positive | None = None
    """Clients are there for a part of each such period, each in a phase of its own. Unset: always."""
    online_share: Fraction = 0.5
    """That part."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Chance that a training's update is never sent."""
    join_seconds: Seconds = 0.0
    """Clients join at times that lie evenly between the beginning and this."""
    stay_seconds: Positive | None = None
    """Mean of the exponential time after which a client leaves for good. Unset: it stays."""


class LinkSettings(Section):
    upload_mbit: Positive | None = None
    """Median upload in Mbit/s. Unset: takes no time."""
    download_mbit: Positive | None = None
    """Median download in Mbit/s. Unset: takes no time."""
    sigma: Spread = 0.0
    """Sigma of the lognormal distribution of both over the clients."""
    latency_seconds: Seconds = 0.0
    """Added to each upload and download."""


class RunSettings(Settings):
    """All settings of one simulated run."""

    simulation: SimulationSettings = SimulationSettings()
    population: PopulationSettings = PopulationSettings()
    data: DataSettings = DataSettings()
    speed: SpeedSettings = SpeedSettings()
    availability: AvailabilitySettings = AvailabilitySettings()
    links: LinkSettings = LinkSettings()

    @model_validator(mode="after")
    def _simulable(self) -> Self:
        if self.stop.source == "sites":
            raise ValueError("stop.source: a simulation measures versions in one place; say evaluator")
        return self


OWN_SECTIONS: dict[str, type[Section]] = {
    "simulation": SimulationSettings,
    "population": PopulationSettings,
    "data": DataSettings,
    "speed": SpeedSettings,
    "availability": AvailabilitySettings,
    "links": LinkSettings,
}
RUN_NAMES = (
    *NAMES,
    *OWN_SECTIONS,
    *(f"{name}.{field}" for name, one in OWN_SECTIONS.items() for field in one.model_fields),
)
"""What a simulation's file may name: sections, and settings as `section.field`."""
