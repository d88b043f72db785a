"""All settings of a process: which sections there are, and what must hold between them."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from llmos_stream.config.aggregation import (
    AggregationSettings,
    AggregatorSettings,
    ServerOptimizerSettings,
    StalenessSettings,
    StopSettings,
    VersionSettings,
)
from llmos_stream.config.base import Section
from llmos_stream.config.broker import BrokerSettings, FederationSettings, TopicSettings, WireSettings
from llmos_stream.config.client import ClientSettings, CodecSettings, EvaluatorSettings, TaskSettings
from llmos_stream.config.guard import GuardSettings
from llmos_stream.config.operations import OperationsSettings, RuntimeSettings, TracingSettings
from llmos_stream.config.participation import ParticipationSettings
from llmos_stream.config.presets import over_preset
from llmos_stream.config.serving import DashboardSettings, DeploySettings, InferenceSettings, RegistrySettings


class Settings(Section):
    """All settings of a process."""

    federation: FederationSettings = FederationSettings()
    broker: BrokerSettings = BrokerSettings()
    topics: TopicSettings = TopicSettings()
    wire: WireSettings = WireSettings()
    codec: CodecSettings = CodecSettings()
    staleness: StalenessSettings = StalenessSettings()
    aggregation: AggregationSettings = AggregationSettings()
    server_optimizer: ServerOptimizerSettings = ServerOptimizerSettings()
    versions: VersionSettings = VersionSettings()
    stop: StopSettings = StopSettings()
    guard: GuardSettings = GuardSettings()
    participation: ParticipationSettings = ParticipationSettings()
    task: TaskSettings = TaskSettings()
    client: ClientSettings = ClientSettings()
    aggregator: AggregatorSettings = AggregatorSettings()
    evaluator: EvaluatorSettings = EvaluatorSettings()
    inference: InferenceSettings = InferenceSettings()
    registry: RegistrySettings = RegistrySettings()
    deploy: DeploySettings = DeploySettings()
    dashboard: DashboardSettings = DashboardSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    operations: OperationsSettings = OperationsSettings()
    tracing: TracingSettings = TracingSettings()

    def changed(self, **sections: Mapping[str, object]) -> Self:
        """A copy with other values in some fields, by section. They are not validated."""
        fresh = {name: getattr(self, name).model_copy(update=fields) for name, fields in sections.items()}
        return self.model_copy(update=fresh)

    @model_validator(mode="before")
    @classmethod
    def _lies_over_its_preset(cls, given: Any) -> Any:
        return over_preset(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        optimizer = self.server_optimizer
        if optimizer.name not in ("sgd", "delayed_nesterov") and optimizer.momentum:
            raise ValueError("server_optimizer.momentum: only sgd has one; the others take beta1")
        if optimizer.name == "delayed_nesterov" and not optimizer.momentum:
            raise ValueError("server_optimizer.momentum: delayed_nesterov needs one, such as 0.9")
        if optimizer.nesterov and not (optimizer.name == "sgd" and optimizer.momentum):
            raise ValueError(
                "server_optimizer.nesterov: it is a kind of momentum of sgd; set server_optimizer.momentum"
            )
        if self.aggregation.strategy == "fedasync" and optimizer != ServerOptimizerSettings():
            raise ValueError("server_optimizer: fedasync mixes models and takes no server optimiser; leave it out")
        if self.client.shard >= self.task.shards:
            raise ValueError(
                f"client.shard: {self.client.shard} is not one of task.shards ({self.task.shards}), counted from 0"
            )
        return self


SECTIONS: Mapping[str, type[Section]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
NAMES = (*SECTIONS, *(f"{section}.{field}" for section, model in SECTIONS.items() for field in model.model_fields))
"""What there is to name: sections, and settings as `section.field`."""
