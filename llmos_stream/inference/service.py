"""The inference service: follows the federation's versions and answers requests with them.

<f>.control, <f>.models -> Following -> Shelf -> route -> Batcher -> answer, with the version that gave it
"""

from functools import cache

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.inference.api import make_app
from llmos_stream.inference.batching import Batcher
from llmos_stream.inference.follow import Following
from llmos_stream.inference.held import Shelf
from llmos_stream.inference.http import serve_http
from llmos_stream.inference.inputs import form_of
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.promoted import Promoted
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.training import Task

_DRAIN = 0.5  # of the time that a stop may take


async def run_inference(
    broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown
) -> int | None:
    """Serve until a stop is asked for, and answer what is under way then. Returns the version that served last.

    Raises ConfigError when the port cannot be had, `registry.url` makes no sense, or the task's model is not the
    federation's or cannot be served.
    """
    ours = settings.inference
    form = await offload.run(form_of, task)
    metrics = _metrics()
    shelf = Shelf(ours, changed=lambda shelf: metrics.holds(shelf.held, _number(shelf), shelf.newest))
    batcher = Batcher(ours, offload, metrics.batch)
    metrics.watch_waiting(lambda: batcher.waiting)

    app = make_app(ours, form, shelf, batcher, metrics, offload)
    drain = settings.runtime.stop_seconds * _DRAIN
    # A store may be slow: threads of its own, so that predictions do not wait for it.
    async with Offload(1) as fetching:
        promoted = Promoted(broker, settings, task, offload, fetching)
        following = Following(broker, settings, task, shelf, promoted, offload, shutdown)
        await run_while(serve_http(app, ours, shutdown, drain), batcher.run(), following.run())
    return _number(shelf)


def _number(shelf: Shelf) -> int | None:
    """Of the version that serves."""
    choice = shelf.serving
    return None if choice is None else choice.version


@cache
def _metrics() -> InferenceMetrics:
    """Names can be registered once in a process."""
    return InferenceMetrics()
