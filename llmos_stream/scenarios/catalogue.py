"""Which scenarios there are: their task, sites, clock and settings.

Rates, batches, epochs and lengths are first guesses, but for the rate and the buffer of `speeches`. See the page for
these, and for how columns are scaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmos_stream.scenarios.heart import Heart
from llmos_stream.scenarios.lending import Lending
from llmos_stream.scenarios.sensors import Sensors
from llmos_stream.scenarios.site_task import SiteTask, Split
from llmos_stream.scenarios.speeches import Speeches


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is compared with what.

    mode: whether more or less of `metric` is better. near: how far from pooled training it may stay to count as
    reached. seconds: how long the federation runs, in the scenario's clock. pooled_epochs, alone_epochs: how often
    pooled training and a site alone go through their rows. personal: what is shared (`task.share`) where each site
    keeps a part of its own; None where that is not tried. by_site: whether the command prints the metric of each site,
    too.
    """

    name: str
    title: str
    task: type[SiteTask]
    metric: str
    near: float
    seconds: float
    pooled_epochs: int
    alone_epochs: int
    personal: str | None
    defaults: Mapping[str, Mapping[str, Any]]
    shown: tuple[str, ...]
    """The metrics of the table, the first of which is `metric`."""
    slowness: Mapping[str, float] = field(default_factory=dict)
    mode: Literal["max", "min"] = "max"
    by_site: bool = False

    @property
    def entry(self) -> str:
        """What `task.entry` is, for a role of its own."""
        return f"{self.task.__module__}:{self.task.__name__}"

    def near_to(self, pooled: float) -> float:
        """What the metric must come to, to be near that of pooled training."""
        return pooled - self.near if self.mode == "max" else pooled + self.near

    def seconds_of(self, site: str, split: Split) -> float:
        """How long a site takes for an update: what was said of it, or else a second and one for 100 rows."""
        return self.slowness.get(site, 1.0 + len(split.train.targets) / 100)


SCENARIOS: Mapping[str, Scenario] = {
    one.name: one
    for one in (
        Scenario(
            name="heart",
            title="Heart disease at four hospitals",
            task=Heart,
            metric="accuracy",
            near=0.005,
            seconds=400.0,
            pooled_epochs=30,
            alone_epochs=30,
            personal="weight",
            defaults={"client": {"lr": 0.02, "batch_size": 16}},
            shown=("accuracy",),
            slowness={"Cleveland": 1.0, "Hungary": 1.0, "VA Long Beach": 5.0, "Switzerland": 20.0},
        ),
        Scenario(
            name="lending",
            title="Loans of lenders in 37 states",
            task=Lending,
            metric="auc",
            near=0.005,
            seconds=80.0,
            pooled_epochs=10,
            alone_epochs=10,
            personal="weight",
            defaults={"client": {"lr": 0.01}},
            shown=("auc", "average_precision", "calibration_error"),
        ),
        Scenario(
            name="sensors",
            title="Anomalies at four sensor nodes",
            task=Sensors,
            metric="average_precision",
            near=0.005,
            seconds=60.0,
            pooled_epochs=30,
            alone_epochs=60,
            personal="mean,turn",
            defaults={"client": {"lr": 0.003}},
            shown=("average_precision", "false_alarms", "nll"),
            slowness={"indoors 1": 1.0, "indoors 2": 1.0, "outdoors 3": 4.0, "outdoors 4": 4.0},
            by_site=True,
        ),
        Scenario(
            name="speeches",
            title="Speeches of eight presidents",
            task=Speeches,
            metric="perplexity",
            mode="min",
            near=0.1,
            seconds=48.0,
            pooled_epochs=3,
            alone_epochs=8,
            personal=None,
            defaults={
                "client": {"lr": 0.004, "batch_size": 8, "local_steps": 40},
                "aggregation": {"buffer_size": 4},
            },
            shown=("perplexity", "accuracy"),
            slowness={
                "Andrew Jackson": 8.0,
                "Ulysses S Grant": 4.0,
                "Grover Cleveland": 2.0,
                "Theodore Roosevelt": 2.0,
                "Harry S Truman": 1.0,
                "Jimmy Carter": 1.0,
                "William J Clinton": 1.0,
                "Barack Obama": 1.0,
            },
            by_site=True,
        ),
    )
}
