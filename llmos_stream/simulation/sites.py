"""A site's task, where a simulation does not split the data itself: as the site's own process would load it."""

from llmos_stream.simulation.settings import RunSettings
from llmos_stream.training import Task, load_task


def load_site(settings: RunSettings, number: int) -> Task:
    """The task of this site, on the data that `data.sites` names for it, or else on its shard.

    Raises:
        ConfigError: It cannot be had.
        TaskError: It does not load.
    """
    names = settings.data.sites
    own = {"data": names[number]} if names else {"shard": number}
    return load_task(settings.task, settings.client.model_copy(update=own))
