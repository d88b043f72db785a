"""The inference service: follows the federation's versions and answers requests with them.

<f>.control, <f>.models -> PoolUpdater -> ModelPool -> route -> Batcher -> answer, which names its version

With the task `llm`, a `Generator` stands in the place of the `Batcher`.
"""

from collections.abc import Coroutine
from functools import cache
from typing import Any, NamedTuple

from fastapi import FastAPI

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import InferenceSettings, Settings
from llmos_stream.errors import ConfigError, install
from llmos_stream.inference.api import make_app
from llmos_stream.inference.batching import Batcher
from llmos_stream.inference.follow import PoolUpdater
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.inputs import input_spec
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.inference.model_pool import Make, ModelPool, making
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log.federation import Federation
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.training import Task, task_errors
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.server import serve_http

_GENERATIVE = "llm"
_DRAIN = 0.5  # of the time that a stop may take


class _Answering(NamedTuple):
    """What answers: the API, what it makes of a version, and the work behind it."""

    app: FastAPI
    make: Make
    work: Coroutine[Any, Any, None]


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
    metrics = _metrics()
    pool = ModelPool(ours, changed=lambda pool: metrics.show_pool(pool.models, _number(pool), pool.newest))
    if settings.task.entry == _GENERATIVE:
        app, make, work = await _generating(settings, task, pool, metrics, offload)
    else:
        app, make, work = await _predicting(ours, task, pool, metrics, offload)
    address = ListenAddress("inference", ours.host, ours.port)
    drain = settings.runtime.stop_seconds * _DRAIN
    # A store may be slow: it has a thread of its own, so that answers do not wait for it.
    async with Offload(1) as fetching:
        try:
            promoted = Promoted(federation, settings.registry, make, fetching)
        except ConfigError:
            work.close()
            raise
        updater = PoolUpdater(federation, make, pool, promoted)
        await run_while(serve_http(app, address, "predicting", shutdown, drain), work, updater.run())
    return _number(pool)


async def _predicting(
    settings: InferenceSettings, task: Task, pool: ModelPool, metrics: InferenceMetrics, offload: Offload
) -> _Answering:
    with task_errors(task.settings.entry):
        spec = await offload.run(input_spec, task)
    batcher = Batcher(settings, offload, metrics.batch)
    metrics.watch_waiting(lambda: batcher.waiting)
    app = make_app(settings, spec, pool, batcher, metrics, offload)
    return _Answering(app, making(task, task.share), batcher.run())


async def _generating(
    settings: Settings, task: Task, pool: ModelPool, metrics: InferenceMetrics, offload: Offload
) -> _Answering:
    try:
        from llmos_stream.inference.generation.api import make_app as generative_app  # noqa: PLC0415  # as below
        from llmos_stream.inference.generation.generator import Generator  # noqa: PLC0415  # needs the extra llm
        from llmos_stream.training.llm.versions import VersionedModel  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}; {install('llm')}") from None
    with task_errors(task.settings.entry):
        model = await offload.run(VersionedModel, settings.task, task.model)
    ours = settings.inference
    counts = _generation_metrics()
    generator = Generator(ours, model, offload, counts, metrics.batch)
    counts.watch(lambda: generator.waiting, lambda: generator.running)
    app = generative_app(ours, settings.federation.name, model, pool, generator, metrics, counts, offload)
    return _Answering(app, model.hold, generator.run())


def _number(pool: ModelPool) -> int | None:
    """The number of the version that serves."""
    choice = pool.serving
    return None if choice is None else choice.version


@cache
def _metrics() -> InferenceMetrics:
    """Names can be registered once in a process."""
    return InferenceMetrics()


@cache
def _generation_metrics() -> GenerationMetrics:
    return GenerationMetrics()
