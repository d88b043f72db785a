"""The aggregator: it folds updates into versions, and one of several leads."""

from llmos_stream.roles.aggregator.role import Initial, WarmStart, initial_of, run_aggregator

__all__ = ["Initial", "WarmStart", "initial_of", "run_aggregator"]
