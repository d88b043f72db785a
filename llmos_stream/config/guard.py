"""What happens to a model that has gone wrong."""

from typing import Annotated, Literal

from pydantic import Field

from llmos_stream.config.base import Count, Section


class GuardSettings(Section):
    on_collapse: Literal["none", "pause", "rollback"] = "none"
    """What to do when an evaluation shows that the model has collapsed, beside telling so. pause: the federation rests
    until `llmos-stream resume`. rollback: a new version goes out that equals the best of the last ones."""
    loss_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 5.0
    """A model has collapsed whose loss is above this many times the best of the last ones, or is not finite."""
    window: Count = 20
    """How many of the last versions evaluated the loss is compared with."""
