"""What our processes export: every metric by name, whether it has samples yet or not."""

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from llmos_stream.inference.deployment import deployer
from llmos_stream.inference.generation.metrics import GenerationMetrics
from llmos_stream.inference.metrics import InferenceMetrics
from llmos_stream.registry import archiver
from llmos_stream.runtime import Health
from llmos_stream.telemetry import process_metrics
from llmos_stream.telemetry.event_metrics import EventMetrics
from llmos_stream.telemetry.federation_metrics import FederationMetrics
from llmos_stream.web.health_endpoints import HealthEndpoints

_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("", "_sum", "_count"),
    "info": ("_info",),
}
OURS = {"up"}
"""What Prometheus adds about each target."""
LABELS = {
    *("job", "instance", "le"),  # Prometheus's own
    *("role", "federation", "version", "condition", "folder"),  # operations
    *("verdict", "reason", "codec", "metric", "need", "topic", "status", "client_id", "kind"),
}


def everything(registry: CollectorRegistry) -> CollectorRegistry:
    """All that any of our processes exports, in `registry`, which may hold a monitor's already."""
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    EventMetrics("llmos", registry)
    InferenceMetrics(registry)
    GenerationMetrics(registry)
    for module in (process_metrics, archiver, deployer):
        for value in vars(module).values():
            if isinstance(value, MetricWrapperBase):
                registry.register(value)
    return registry


def _collected() -> list[tuple[str, str]]:
    registry = everything(CollectorRegistry())
    FederationMetrics(registry)
    with HealthEndpoints(Health(["broker"]), {"role": "x"}, registry).exported():
        return [(family.name, family.type) for family in registry.collect()]


def families() -> set[str]:
    """The metrics that any of our processes exports, without the endings of their samples."""
    return {name for name, _ in _collected()}


def names() -> set[str]:
    """The names of all samples that any of our processes exports."""
    return {name + suffix for name, kind in _collected() for suffix in _SUFFIXES[kind]}
