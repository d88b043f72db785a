'''Rules of your own: what a strategy, a server optimiser, a staleness function and a stop rule are, and how to add one.

From accepted updates to a version is one pipeline: admit, check and clip, weigh, combine, privatise, apply, guard. A
strategy is two of these stages, weigh and combine, and its capabilities say what the others must know of it. Subclass
`Strategy` and override what differs; as it stands it is FedBuff. This is a whole package, `tempered.py`:

    """FedBuff in which a client's weight grows more slowly than its data."""

    from collections.abc import Sequence

    from pydantic import BaseModel, Field

    from llmos_stream.strategy import Contribution, Strategy


    class Options(BaseModel):
        power: float = Field(default=0.5, ge=0, le=1)


    class Tempered(Strategy):
        Options = Options
        formula = "sum_i n_i^power s(tau_i) c_i Delta_i / sum_i n_i^power"
        share = "weight x clip / sum of tempered examples"

        def weigh(self, num_examples: int, discount: float) -> float:
            return num_examples**self.options.power * discount

        def divisor(self, manifest: Sequence[Contribution]) -> float:
            return sum(item.num_examples**self.options.power for item in manifest)

and its `pyproject.toml`:

    [project]
    name = "tempered"
    version = "1.2"

    [project.entry-points."llmos_stream.strategies"]
    tempered = "tempered:Tempered"

Install it where the aggregator runs and name it: `--aggregation.strategy tempered --aggregation.options power=0.3`. What
has no package is named as `--aggregation.strategy tempered:Tempered`. Options are validated by the rule's own model, and
recorded in every version with the package and its version: so that `llmos-stream replay` finds the rule again, or says
what to install. A path is imported from this machine's settings alone, never because a log names it.

**A rule that needs all updates at once** says how many it `holds` and overrides `combine`, which is given the same
elements of all of them, stretch by stretch (see `Stretch`). They are held in quantized form: K bytes a parameter for K
updates in int8. What must look at whole updates first (norms, distances) overrides `judge`, whose outcome stands in the
manifest.

**Buffers** (batch-norm statistics, masks) are no part of the rows. They are averaged as values, with the weights of
`weigh`, and mixed into the old ones by `mixing`. A rule whose `combine` is right for values too says `combines_values`.

**What must hold**: results depend on what a rule is given and on nothing else, and not on the number of threads.
Operations on elements are safe; sums over them are not (a tensor's `sum` and `mean` may be split at other places), nor
is a fused multiply-add (`addcmul`, `lerp`, `add` with `alpha`). Add rows up one after the other.

| what | group of entry points | setting | called with |
| --- | --- | --- | --- |
| strategy | `llmos_stream.strategies` | `aggregation.strategy` | options, `AggregationSettings`; gives a `Strategy` |
| staleness | `llmos_stream.staleness` | `staleness.kind` | options, `StalenessSettings`; gives s(tau), from 0 to 1 |
| server optimiser | `llmos_stream.server_optimizers` | `server_optimizer.name` | options, `ServerOptimizerSettings`, number of parameters, device; gives a `ServerOptimizer` |
| stop rule | `llmos_stream.stop_rules` | `stop.rule` | options, `StopSettings`; gives a `StopRule` |

Codecs of one's own have a group too (see `llmos_stream.codec.packaged`); both ends must have the package.

Each may have an attribute `Options`, the pydantic model of its section's `options`; without one it takes none.
'''  # noqa: E501 (a table's row)

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings, StopSettings
from llmos_stream.core.held import Held
from llmos_stream.core.optimizer import ServerOptimizer
from llmos_stream.core.stopping import Stop, StopRule
from llmos_stream.core.strategy import Strategy, Stretch
from llmos_stream.types import Contribution

__all__ = [
    "AggregationSettings",
    "Contribution",
    "Held",
    "ServerOptimizer",
    "ServerOptimizerSettings",
    "StalenessSettings",
    "Stop",
    "StopRule",
    "StopSettings",
    "Strategy",
    "Stretch",
]
