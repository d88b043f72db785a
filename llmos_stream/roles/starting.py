"""The state that an aggregator begins with: that of a new federation, or that of the newest version in the log."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import State, device_for, start
from llmos_stream.errors import StateError
from llmos_stream.roles.recovery import Recovered

log = logging.getLogger(__name__)


def new_state(
    settings: Settings,
    layout: Layout,
    weights: Tensor,
    version: int,
    history: Mapping[int, Tensor] | None = None,
    sequences: Mapping[str, Sequence[int]] | None = None,
    floor: int = 0,
    moments: Mapping[str, Tensor] | None = None,
) -> State:
    """The state at `version`; what is not given begins empty. Raises StateError for moments that do not fit."""
    return start(
        weights,
        layout.digest,
        version,
        aggregation=settings.aggregation,
        staleness=settings.staleness,
        server_optimizer=settings.server_optimizer,
        history=history,
        moments=moments,
        sequences=sequences,
        floor=floor,
        device=device_for(settings.aggregator.device),
    )


def resumed_state(settings: Settings, layout: Layout, found: Recovered) -> State:
    """The state to go on from. Raises StateError for sequences that are damaged."""
    floor = 0 if found.progress is None else found.progress.floor
    weights, number = found.newest.weights, found.newest.head.number
    begin = partial(new_state, settings, layout, weights, number, found.history, found.sequences, floor)
    try:
        return begin(found.moments)
    except StateError as error:
        # Another rule than before, by its operator's choice; damaged sequences would be refused again.
        state = begin()
        log.warning("%s: its moments start anew", error)
        return state
