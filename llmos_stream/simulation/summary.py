"""What the runs of an arm have come to together: means with their intervals, and medians of what not all may reach."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from llmos_stream.simulation.experiment import Experiment
from llmos_stream.simulation.results import Result

# Student's t at 97.5 % by degrees of freedom; beyond, the normal distribution is within 2 %.
_T: tuple[float, ...] = (
    *(12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL = 1.96


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds, and half the width of its 95 % interval (Student's t); NaN for one seed."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.4g}" if math.isnan(self.half) else f"{self.mean:.4g} ± {self.half:.2g}"


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm over all seeds. What was reached by none is None; a median over seeds is None where most did not."""

    arm: str
    seeds: int
    final: Estimate | None
    worst_seed: float | None
    reached: int | None
    seconds_to_target: float | None
    bytes_to_target: float | None
    updates_to_target: float | None
    worst_site: Estimate | None
    site_variance: Estimate | None
    staleness: Estimate | None
    staleness_p95: Estimate | None
    refused_share: Estimate
    never_folded: Estimate
    """Clients whose every update was refused."""
    seconds: Estimate
    bytes_up: Estimate
    bytes_down: Estimate
    training: str


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean and its interval; None of nothing."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], math.nan)
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
    return Estimate(fmean(values), t * stdev(values) / math.sqrt(len(values)))


def summarise(experiment: Experiment, results: Sequence[Result]) -> list[ArmSummary]:
    """One summary for each arm, in their order."""
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_arm[result.arm].append(result)
    return [_summary(experiment, arm.name, by_arm[arm.name]) for arm in experiment.arms]


def _summary(experiment: Experiment, name: str, runs: Sequence[Result]) -> ArmSummary:
    settings = next(arm for arm in experiment.arms if arm.name == name).settings.simulation
    finals = [run.final for run in runs if run.final is not None]
    met = [] if settings.target is None else [run.reached(settings.target, settings) for run in runs]
    worst = min if settings.mode == "max" else max
    return ArmSummary(
        arm=name,
        seeds=len(runs),
        final=estimate(finals),
        worst_seed=worst(finals, default=None),
        reached=None if settings.target is None else sum(point is not None for point in met),
        seconds_to_target=_median([math.inf if point is None else point.seconds for point in met]),
        bytes_to_target=_median([math.inf if point is None else point.bytes_up + point.bytes_down for point in met]),
        updates_to_target=_median([math.inf if point is None else point.updates for point in met]),
        worst_site=estimate(_known(runs, "sites", "worst")),
        site_variance=estimate(_known(runs, "sites", "variance")),
        staleness=estimate(_known(runs, "staleness", "mean")),
        staleness_p95=estimate(_known(runs, "staleness", "p95")),
        refused_share=_of([sum(run.refused.values()) / max(run.updates, 1) for run in runs]),
        never_folded=_of([float(run.clients_never_folded) for run in runs]),
        seconds=_of([run.seconds for run in runs]),
        bytes_up=_of([float(run.bytes_up) for run in runs]),
        bytes_down=_of([float(run.bytes_down) for run in runs]),
        training=runs[0].training,
    )


def _of(values: Sequence[float]) -> Estimate:
    return estimate(values) or Estimate(math.nan, math.nan)


def _known(runs: Sequence[Result], field: str, name: str) -> list[float]:
    tables: list[Mapping[str, float]] = [getattr(run, field) for run in runs]
    return [table[name] for table in tables if name in table]


def _median(values: Sequence[float]) -> float | None:
    found = median(values) if values else math.inf
    return None if math.isinf(found) else float(found)
