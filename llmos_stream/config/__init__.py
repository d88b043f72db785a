"""Every setting: its name, its range, its default and what it does.

One value is looked up as flag, then environment (`LLMOS_SECTION__FIELD`), then TOML file, then
default. All sections are frozen: a run has the settings it started with.
"""

from llmos_stream.config.aggregation import (
    AggregationSettings,
    AggregatorSettings,
    ServerOptimizerSettings,
    StalenessSettings,
    StopSettings,
    VersionSettings,
)
from llmos_stream.config.base import NAME_PATTERN, Section, expanded, explain, redacted
from llmos_stream.config.broker import BrokerSettings, FederationSettings, TopicSettings, WireSettings
from llmos_stream.config.client import ClientSettings, CodecSettings, EvaluatorSettings, TaskSettings
from llmos_stream.config.guard import GuardSettings
from llmos_stream.config.load import load, origins, settings_of, to_environment
from llmos_stream.config.names import did_you_mean
from llmos_stream.config.operations import OperationsSettings, RuntimeSettings, TracingSettings
from llmos_stream.config.participation import ParticipationSettings
from llmos_stream.config.serving import DashboardSettings, DeploySettings, InferenceSettings, RegistrySettings
from llmos_stream.config.settings import SECTIONS, Settings

__all__ = [
    "NAME_PATTERN",
    "SECTIONS",
    "AggregationSettings",
    "AggregatorSettings",
    "BrokerSettings",
    "ClientSettings",
    "CodecSettings",
    "DashboardSettings",
    "DeploySettings",
    "EvaluatorSettings",
    "FederationSettings",
    "GuardSettings",
    "InferenceSettings",
    "OperationsSettings",
    "ParticipationSettings",
    "RegistrySettings",
    "RuntimeSettings",
    "Section",
    "ServerOptimizerSettings",
    "Settings",
    "StalenessSettings",
    "StopSettings",
    "TaskSettings",
    "TopicSettings",
    "TracingSettings",
    "VersionSettings",
    "WireSettings",
    "did_you_mean",
    "expanded",
    "explain",
    "load",
    "origins",
    "redacted",
    "settings_of",
    "to_environment",
]
