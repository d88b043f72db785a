"""The inference service: follows the federation's versions and answers requests with them.

<f>.control, <f>.models -> PoolUpdater -> ModelPool -> route -> Batcher -> answer, which names its version
"""

from functools import cache

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.inference.api import make_app
from llmos_stream.inference.batching import Batcher
from llmos_stream.inference.follow import PoolUpdater
from llmos_stream.inference.inputs import input_spec
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import ModelPool
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log.federation import Federation
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.training import Task, task_errors
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.server import serve_http

_DRAIN = 0.5  # of the time that a stop may take


async def run_inference(
    broker: Broker, settings: Settings, task: Task, offload: Offload, shutdown: Shutdown
) -> int | None:
    """Serve until a stop is asked for, and answer what is under way then.

    Returns:
        The version that served last.

    Raises:
        ConfigError: The port cannot be opened, `registry.url` is wrong, or the task's model cannot be served or is
            not the federation's.
    """
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown)
    ours = settings.inference
    with task_errors(settings.task.entry):
        spec = await offload.run(input_spec, task)
    metrics = _metrics()
    pool = ModelPool(ours, changed=lambda pool: metrics.show_pool(pool.models, _number(pool), pool.newest))
    batcher = Batcher(ours, offload, metrics.batch)
    metrics.watch_waiting(lambda: batcher.waiting)

    app = make_app(ours, spec, pool, batcher, metrics, offload)
    address = ListenAddress("inference", ours.host, ours.port)
    drain = settings.runtime.stop_seconds * _DRAIN
    # A store may be slow: it has a thread of its own, so that predictions do not wait for it.
    async with Offload(1) as fetching:
        promoted = Promoted(federation, settings.registry, task, task.share, fetching)
        updater = PoolUpdater(federation, task, task.share, pool, promoted)
        await run_while(serve_http(app, address, "predicting", shutdown, drain), batcher.run(), updater.run())
    return _number(pool)


def _number(pool: ModelPool) -> int | None:
    """The number of the version that serves."""
    choice = pool.serving
    return None if choice is None else choice.version


@cache
def _metrics() -> InferenceMetrics:
    """Names can be registered once in a process."""
    return InferenceMetrics()
