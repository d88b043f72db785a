"""Rules of your own: what a strategy, a server optimiser, a staleness function and a stop rule are.

`llmos-stream docs strategy` has a whole package, what must hold, and the groups of entry points.
"""

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings, StopSettings
from llmos_stream.core.held import Held
from llmos_stream.core.optimizer import ServerOptimizer
from llmos_stream.core.stopping import Stop, StopRule
from llmos_stream.core.strategy import Holding, Strategy, Stretch
from llmos_stream.types import Contribution

__all__ = [
    "AggregationSettings",
    "Contribution",
    "Held",
    "Holding",
    "ServerOptimizer",
    "ServerOptimizerSettings",
    "StalenessSettings",
    "Stop",
    "StopRule",
    "StopSettings",
    "Strategy",
    "Stretch",
]
