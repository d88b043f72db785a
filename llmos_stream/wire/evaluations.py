"""Evaluations: what a record of `<f>.evaluations` says, and what several sites say together.

A record is an event of the kind `evaluation` (see `events`) from one of two writers:

    evaluator   {"version": int, "metrics": {name: number | null}, "num_examples": int | null, "seconds": number | null}
                measured on central test data; key and role are `evaluator`
    client      the same with "client_id", measured on the site's own validation data; the key is the client's id, the
                role is `client`, and `num_examples` is there, from 1 up

A client's evaluation may be of another model than the version: `trained_by` names the client that trained it on its own
data alone, from version `since` on and for as many steps as it has taken part with by then. No stop rule looks at it.

null stands for a number that is not finite, which is an answer too. A client's first report on a version counts.

What K sites say together of a metric, over those for which it is finite:

    mean     sum n_i x_i / sum n_i, where no n_i counts for more than max(3, K - 1) times the middle one
    spread   the standard deviation of the x_i, each site counting once: sqrt(mean (x_i - mean x)^2)
    worst    the lowest x_i; the highest where less is better
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmos_stream.types import Event, EventKind, Role
from llmos_stream.wire.events import text, whole
from llmos_stream.wire.fields import is_client_id

MOST_METRICS = 64
"""Metrics that a client may tell of one version."""
MOST_EXAMPLES = 1_000_000_000
"""Validation examples that a client may claim."""
LARGEST = 1e15
"""What a metric may be, above or below 0."""
_LEAST_RATIO = 3
_LESS_IS_BETTER = ("loss", "error", "perplexity", "mae", "mse", "rmse", "nll", "wer", "cer", "brier", "ece")


class SiteReport(NamedTuple):
    """What a site measured of a version. A metric is None where it was not finite."""

    num_examples: int
    metrics: Mapping[str, float | None]


class Together(NamedTuple):
    """What sites say together of a metric: `sites` of them with a finite value, and `not_finite` more."""

    sites: int
    not_finite: int
    mean: float
    spread: float
    worst: str
    worst_value: float
    median: float


def site_of(event: Event) -> str | None:
    """The client whose evaluation it is; None for any other event, and for an evaluator's."""
    return text(event.data.get("client_id")) if event.kind is EventKind.EVALUATION else None


def trainer_of(event: Event) -> str | None:
    """The client that has trained the model which was measured, alone; None where that is a version."""
    return text(event.data.get("trained_by"))


def site_fault(event: Event) -> str | None:
    """Say why an evaluation can be neither a client's nor an evaluator's."""
    client_id = event.data.get("client_id")
    if client_id is None:
        if event.data.get("trained_by") is not None:
            return "an evaluator measures versions alone"
        return "an evaluation of a client that names none" if event.role == Role.CLIENT else None
    if event.role != Role.CLIENT:
        return "it names a client, and is of none"
    if not is_client_id(client_id):
        return "its client_id is none"
    trainer, since = event.data.get("trained_by"), whole(event.data.get("since"))
    if trainer is not None and (
        not is_client_id(trainer) or since is None or since > (whole(event.data["version"]) or 0)
    ):
        return "it is of a model that nobody can have trained"
    num_examples, metrics = whole(event.data.get("num_examples")), event.data.get("metrics")
    if num_examples is None or not 1 <= num_examples <= MOST_EXAMPLES:
        return f"it claims {str(event.data.get('num_examples'))[:40]} examples, where 1 to {MOST_EXAMPLES} can be"
    if isinstance(metrics, Mapping) and len(metrics) > MOST_METRICS:
        return f"it has {len(metrics)} metrics, more than {MOST_METRICS}"
    return None


def site_report(data: Mapping[str, object]) -> SiteReport:
    """What a client's evaluation says, where it has no fault."""
    metrics = data.get("metrics")
    named = metrics if isinstance(metrics, Mapping) else {}
    return SiteReport(whole(data.get("num_examples")) or 1, {str(name): _finite(named[name]) for name in named})


def together(reports: Mapping[str, SiteReport], name: str) -> Together | None:
    """What sites say together of the metric `name`; None where none has a finite value of it."""
    told = {site: report for site, report in reports.items() if name in report.metrics}
    values = {site: value for site, report in told.items() if (value := report.metrics[name]) is not None}
    if not values:
        return None
    counted = _counted({site: told[site].num_examples for site in values})
    mean = math.fsum(counted[site] * value for site, value in values.items()) / sum(counted.values())
    worst = (max if less_is_better(name) else min)(sorted(values), key=values.__getitem__)
    return Together(
        sites=len(values),
        not_finite=len(told) - len(values),
        mean=mean,
        spread=_spread(list(values.values())),
        worst=worst,
        worst_value=values[worst],
        median=statistics.median(values.values()),
    )


def metric_names(reports: Mapping[str, SiteReport], most: int) -> list[str]:
    """The names of at most so many metrics: accuracy and loss first, then those that most sites told."""
    told: dict[str, int] = {}
    for report in reports.values():
        for name in report.metrics:
            told[name] = told.get(name, 0) + 1
    return sorted(told, key=lambda name: (name not in ("accuracy", "loss"), -told[name], name))[:most]


def less_is_better(name: str) -> bool:
    """Whether less of a metric is better, by its name: a loss, an error, a perplexity."""
    words = name.lower().replace("-", "_").replace(".", "_").split("_")
    return any(word in _LESS_IS_BETTER or word.endswith(("loss", "error")) for word in words)


def _counted(claimed: Mapping[str, int]) -> dict[str, int]:
    """For how many examples each site counts, so that none outweighs the others by what it claims."""
    limit = max(_LEAST_RATIO, len(claimed) - 1) * statistics.median_low(claimed.values())
    return {site: min(num_examples, limit) for site, num_examples in claimed.items()}


def _spread(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / len(values))


def _finite(value: object) -> float | None:
    """`value` where it is a number of which a few thousand can be squared and added up."""
    return float(value) if isinstance(value, int | float) and abs(value) <= LARGEST else None
