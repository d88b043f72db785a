"""What the aggregator does once the model has collapsed: say so, and perhaps pause, or go back to the best version."""

import logging
import math

from torch import Tensor

from llmos_stream.core.collapse import Collapse
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.roles.aggregator.recovery import fetch_version
from llmos_stream.types import Event, EventKind, Role

logger = logging.getLogger(__name__)


def collapse_event(federation: Federation, collapse: Collapse, action: str) -> Event:
    """The event of a collapse; `action` is the setting `guard.on_collapse`."""
    version, loss = collapse.best or (None, None)
    return federation.event(
        EventKind.MODEL_COLLAPSED,
        Role.AGGREGATOR,
        version=collapse.version,
        loss=collapse.loss if math.isfinite(collapse.loss) else None,
        limit=collapse.limit,
        best_version=version,
        best_loss=None if loss is None or loss < 0 else loss,
        action=action,
    )


async def weights_of(federation: Federation, version: int) -> Tensor | None:
    """The weights of a version of the log; None where they are not there any more, which a log line says."""
    try:
        async with version_index(federation.broker, federation.topics.models) as index:
            pointer = await index.pointer(version)
        if pointer is not None:
            return (await fetch_version(federation, pointer)).weights
    except (OffsetGone, Rejected) as error:
        logger.error("version %d cannot be read: %s", version, error)
    logger.error("cannot go back to version %d: it is not in the log any more", version)
    return None
