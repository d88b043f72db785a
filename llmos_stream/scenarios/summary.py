"""What a study has come to: for each arm the mean over the seeds, and within what it lies in 19 of 20 cases."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median, stdev
from typing import Any

from llmos_stream.scenarios.study import Outcome, Study

_T: tuple[float, ...] = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
_T += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045)
_T_BEYOND = 2.04
"""The 97.5 % quantiles of Student's t with 1, 2 ... 29 degrees of freedom; no less than those beyond."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds; the interval of 95 % is `mean` plus and minus `half_width`, which one seed does not have."""

    mean: float
    half_width: float | None

    def __str__(self) -> str:
        if not math.isfinite(self.mean):
            return "-"
        return f"{self.mean:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


@dataclass(frozen=True, slots=True)
class Line:
    """One arm. `reached` is the median of the seconds until it was near pooled training, of the seeds that were.

    `by_site` is the scenario's metric at each site, by the model that the site has.
    """

    arm: str
    at_home: dict[str, Estimate]
    everywhere: Estimate
    by_site: dict[str, Estimate]
    reached: float | None
    seeds_that_reached: int
    updates: float


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and its interval, by Student's t. What is not a number is left out."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Estimate(math.nan, None)
    degrees = len(known) - 1
    if not degrees:
        return Estimate(known[0], None)
    quantile = _T[degrees - 1] if degrees <= len(_T) else _T_BEYOND
    return Estimate(mean(known), quantile * stdev(known) / math.sqrt(len(known)))


def lines(study: Study) -> list[Line]:
    """A line for each arm, in the order in which they ran."""
    return [_line(study, arm, outcomes) for arm, outcomes in study.outcomes.items()]


def as_json(study: Study) -> dict[str, Any]:
    """All of it, with what each seed came to."""
    scenario = study.scenario
    arms = {
        line.arm: asdict(line)
        | {
            "seeds": [
                {
                    "at_home": dict(one.at_home),
                    "everywhere": dict(one.everywhere),
                    "by_site": {site: dict(metrics) for site, metrics in one.by_site.items()},
                    "reached": one.reached,
                }
                for one in study.outcomes[line.arm]
            ]
        }
        for line in lines(study)
    }
    return {
        "scenario": scenario.name,
        "metric": scenario.metric,
        "mode": scenario.mode,
        "rows": study.rows,
        "near": scenario.near,
        "seconds": scenario.seconds,
        "seeds": list(study.seeds),
        "arms": arms,
    }


def _line(study: Study, arm: str, outcomes: Sequence[Outcome]) -> Line:
    scenario = study.scenario
    reached = [one.reached for one in outcomes if one.reached is not None]
    return Line(
        arm=arm,
        at_home={name: estimate([one.at_home[name] for one in outcomes]) for name in scenario.shown},
        everywhere=estimate([one.everywhere[scenario.metric] for one in outcomes]),
        by_site={
            site: estimate([one.by_site[site][scenario.metric] for one in outcomes]) for site in outcomes[0].by_site
        },
        reached=median(reached) if reached else None,
        seeds_that_reached=len(reached),
        updates=mean(one.updates for one in outcomes),
    )
