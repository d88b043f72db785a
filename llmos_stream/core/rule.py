"""What versions are aggregated under: the settings of one rule, what their names stand for, and how it is recorded.

A rule comes from this machine's settings, or from the head of a version. The second may name what is built in and what
somebody has installed here; a `package.module:callable` it may name only where local settings name the same one, since
nothing is imported because of what a message says.

Recorded are the three sections, with the options as the plug-ins' own models have them, and `packages`, a map from
section to [name, version] of the distribution that its rule is from, left out for what is built in. `buffer_size` is
the number that the version was made at, and `adapted` is true where that follows from who took part.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, Section, ServerOptimizerSettings, StalenessSettings
from llmos_stream.config.plugins import (
    SERVER_OPTIMIZERS,
    STALENESS,
    STRATEGIES,
    Kind,
    Package,
    Plugin,
    find_plugin,
    is_path,
)
from llmos_stream.core import optimizer, staleness
from llmos_stream.core.fedasync import FedAsync
from llmos_stream.core.fednova import FedNova
from llmos_stream.core.late_optimizers import DelayedNesterov, Fadas
from llmos_stream.core.participants import MOST
from llmos_stream.core.pipeline import Pipeline, capacity_of, history_of
from llmos_stream.core.robust import Krum, Median, MultiKrum, NormBound, TrimmedMean
from llmos_stream.core.strategy import Strategy
from llmos_stream.core.synchronous import FedAvg
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.types import Fragment, TensorSpec

Changes = Mapping[str, Mapping[str, object]]
"""Settings in place of the recorded ones: section, field, value."""

STRATEGIES_BUILT_IN: Mapping[str, type[Strategy]] = {
    "fedbuff": Strategy,
    "fedavg": FedAvg,
    "fedasync": FedAsync,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "norm_bound": NormBound,
    "fednova": FedNova,
}
OPTIMIZERS_BUILT_IN: Mapping[str, Callable[..., optimizer.ServerOptimizer]] = {
    **optimizer.BUILT_IN,
    "fadas": Fadas,
    "delayed_nesterov": DelayedNesterov,
}
_PACKAGES = "packages"
_ADAPTED = "adapted"

S = TypeVar("S", bound=Section)

_LATER: Mapping[str, object] = {"max_step": None, "quorum": None, "nesterov": False, "fragments": 1}
"""Settings that came later than records of rules, and what they are where nobody uses them."""
_BEFORE = {"clip_multiple": 0.0, "max_share": 1.0, "one_of_a_client": False}
"""What holds in records from before these settings came, and where they leave them out."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a version is aggregated under, from local settings unless `recorded`.

    packages: what its record says of where its plug-ins are from. trusted: names that local settings use, which alone
    may be paths. changed: sections of a record that this machine has changed. Whatever asks for a plug-in that is not
    there raises ConfigError for one that was named here, Rejected(UNSUPPORTED) for one that was recorded, with what to
    install.
    """

    aggregation: AggregationSettings = field(default_factory=AggregationSettings)
    staleness: StalenessSettings = field(default_factory=StalenessSettings)
    server_optimizer: ServerOptimizerSettings = field(default_factory=ServerOptimizerSettings)
    packages: Mapping[str, Package] = field(default_factory=dict)
    trusted: Set[str] = frozenset()
    recorded: bool = False
    changed: Set[str] = frozenset()

    @classmethod
    def of(
        cls, recorded: Mapping[str, object], changes: Changes | None = None, *, trusted: Set[str] = frozenset()
    ) -> "Rule":
        """The rule that a version's head records, with `changes`, which are this machine's.

        Raises Rejected(UNSUPPORTED) where the record is not one that this release understands, ValueError for
        changes that make no sense.
        """
        changes = changes or {}
        packages = _packages(recorded)
        if recorded.get(_ADAPTED) is True and "strategy" in changes.get("aggregation", {}):
            recorded = {**recorded, "aggregation": _without_size(recorded.get("aggregation"))}
        for section, name in _NAMED.items():
            if name in changes.get(section, {}):
                packages.pop(section, None)
                trusted = trusted | {str(changes[section][name])}
        return cls(
            _section(AggregationSettings, "aggregation", recorded, changes),
            _section(StalenessSettings, "staleness", recorded, changes),
            _section(ServerOptimizerSettings, "server_optimizer", recorded, changes),
            packages,
            trusted,
            recorded=True,
            changed=changes.keys(),
        )

    @property
    def admitted(self) -> StalenessSettings:
        """How stale an update may be: a strategy that needs past versions takes none on one that it does not hold.

        A synchronous one takes none on a past version at all.
        """
        if self._is_recorded("aggregation"):
            return self.staleness  # in a record it is what was admitted
        most = self.strategy().most_stale
        if most is None or self.staleness.maximum <= most:
            return self.staleness
        return self.staleness.model_copy(update={"maximum": most})

    @property
    def names(self) -> frozenset[str]:
        """The names that it uses."""
        return frozenset(map(self._name, _NAMED))

    def resized_as(self, other: "Rule") -> "Rule":
        """This rule, with the buffer of another."""
        size = {"buffer_size": other.aggregation.buffer_size}
        return replace(self, aggregation=self.aggregation.model_copy(update=size))

    def record(self) -> dict[str, object]:
        """The rule as a version's head records it."""
        found: dict[str, object] = {}
        packages: dict[str, list[str]] = {}
        for section in _NAMED:
            settings = self._settings(section)
            plugin = self._plugin(section)
            options = self._options(section, plugin).model_dump(mode="json")
            # What nobody uses is left out: releases that do not know it read these rules too.
            unused = {name for name, default in _LATER.items() if getattr(settings, name, default) == default}
            unused |= {"grace_seconds"} if "quorum" in unused else set()
            fields = settings.model_dump(mode="json", exclude={"options", "history", "one_of_a_client", *unused})
            if section == "aggregation" and self.strategy().one_of_a_client:
                fields["one_of_a_client"] = True
            found[section] = fields | ({"options": options} if options else {})
            if plugin.package is not None:
                packages[section] = [plugin.package.name, plugin.package.version]
        return found | ({_PACKAGES: packages} if packages else {})

    def strategy(self) -> Strategy:
        """The strategy, which is only asked what it is like."""
        found, name = self._made("aggregation"), self.aggregation.strategy
        if not isinstance(found, Strategy):
            self._fail("aggregation", "strategy", f"{name} makes a {type(found).__name__}, which is no Strategy")
        return found

    def pipeline(
        self,
        version: int,
        weights: Tensor,
        history: Mapping[int, Tensor] | None = None,
        buffers: Sequence[TensorSpec] = (),
    ) -> Pipeline:
        """The stages at `version`, where nothing waits, on the device of its `weights`, the end of which is `buffers`.

        `history` is what strategies that need past versions start from.

        Raises:
            ValueError: The history is of another model.
            ConfigError: float32 cannot hold the settings.
        """
        strategy, discount, staleness = self.strategy(), self._made("staleness"), self.admitted
        found: optimizer.ServerOptimizer | None = None
        if strategy.uses_server_optimizer:
            parameters = weights.numel() - sum(spec.numel for spec in buffers)
            found = self._made("server_optimizer", parameters, weights.device)
        pipeline = Pipeline(strategy, discount, found, self.aggregation, staleness, weights.device, buffers=buffers)
        if strategy.needs_history:
            pipeline.history = history_of(version, weights, history, staleness)
        return pipeline

    def pipelines(
        self,
        version: int,
        weights: Tensor,
        history: Mapping[int, Tensor] | None = None,
        buffers: Sequence[TensorSpec] = (),
        fragments: Sequence[Fragment] = (),
    ) -> tuple[Pipeline, ...]:
        """One pipeline for each of the `fragments` of `weights`, or one for the whole where there is but one.

        They share the server optimiser, whose moments are as long as the model, so that what a snapshot holds does not
        depend on their number. Each has all else of its own: buffer, deadline, sum, limits.

        Raises:
            ValueError: As `pipeline`.
            ConfigError: As `pipeline`; or there are not as many fragments as the rule says, or the strategy or the
                optimiser takes none.
        """
        if max(len(fragments), 1) != self.aggregation.fragments:
            cut = f"is cut into {len(fragments)}" if fragments else "moves as a whole here"
            self._fail("aggregation", "fragments", f"{self.aggregation.fragments} are wanted, and the model {cut}")
        whole = self.pipeline(version, weights, history, buffers)
        if self.aggregation.fragments == 1:
            return (whole,)
        self._check_fragments(whole)
        return tuple(whole.on(fragment) for fragment in fragments)

    def _check_fragments(self, pipeline: Pipeline) -> None:
        strategy = pipeline.strategy
        if strategy.needs_history or strategy.most_stale == 0:
            what = "mixes whole models" if strategy.needs_history else "makes rounds of whole models"
            self._fail("aggregation", "fragments", f"{self.aggregation.strategy} {what}; leave it at 1")
        if pipeline.optimizer is not None and pipeline.optimizer.counts_versions:
            self._fail("aggregation", "fragments", f"{self.server_optimizer.name} counts versions; leave it at 1")
        if pipeline.strategy.counts_steps:
            what = "counts the local steps of one training, and a fragment is learnt in several"
            self._fail("aggregation", "fragments", f"{self.aggregation.strategy} {what}; leave it at 1")
        least = 2 * self.aggregation.fragments
        if self.admitted.maximum < least:
            what = f"they take turns, and staleness.maximum is {self.admitted.maximum}; raise it to {least} at least"
            self._fail("aggregation", "fragments", what)

    @property
    def capacity(self) -> int:
        """At how many updates a version is made, whatever the time; at most so many, where that adapts."""
        return capacity_of(self.strategy())

    @property
    def moments(self) -> frozenset[str]:
        """Names of what the server optimiser remembers from version to version; empty where it remembers nothing."""
        return frozenset(self.pipeline(0, torch.zeros(1, dtype=torch.float32, device="cpu")).state_tensors())

    def other_packages(self) -> str | None:
        """Which plug-ins are here in another version than the record says, in one line."""
        found = []
        for section, made_by in self.packages.items():
            here = self._plugin(section).package
            if here is not None and here.version != made_by.version:
                found.append(f"{made_by.name} {made_by.version}, here {here.version}")
        return f"made by {', '.join(found)}" if found else None

    def _made(self, section: str, *arguments: object) -> Any:
        plugin = self._plugin(section)
        options = self._options(section, plugin)
        try:
            return plugin.target(options, self._settings(section), *arguments)
        except ValueError as error:
            self._fail(section, "options", str(error))

    def _settings(self, section: str) -> Section:
        """A section as those who use it see it: of how many updates a version is made at most is a number there."""
        if section == "staleness":
            return self.admitted
        if section == "aggregation" and self.aggregation.buffer_size is None:
            return self.aggregation.model_copy(update={"buffer_size": MOST})
        found: Section = getattr(self, section)
        return found

    def _options(self, section: str, plugin: Plugin) -> Any:
        try:
            return plugin.options(getattr(self, section).options)
        except ValueError as error:
            self._fail(section, "options", str(error))

    def _plugin(self, section: str) -> Plugin:
        name, made_by = self._name(section), self.packages.get(section)
        kind, built_in = _KINDS[section]
        source = f" of package {made_by.name} {made_by.version}" if made_by else ""
        made = f"this version was made by {kind.noun} {name}{source}"
        if self.recorded and is_path(name) and name not in self.trusted:
            where = f"{section}.{_NAMED[section]}"
            self._fail(section, "", f"{made}: it is imported only where {where} of the settings here names it too")
        try:
            found = find_plugin(kind, built_in, name)
        except ConfigError as error:
            hint = f"pip install {made_by.name}=={made_by.version}" if made_by else str(error)
            self._fail(section, _NAMED[section], f"{made}: {hint}" if self._is_recorded(section) else hint)
        if made_by is not None and (found.package is None or found.package.name != made_by.name):
            here = f"package {found.package.name}" if found.package else "no package"
            self._fail(section, _NAMED[section], f"{made}: the one here is of {here}")
        return found

    def _name(self, section: str) -> str:
        name: str = getattr(getattr(self, section), _NAMED[section])
        return name

    def _is_recorded(self, section: str) -> bool:
        return self.recorded and section not in self.changed

    def _fail(self, section: str, field: str, detail: str) -> NoReturn:
        if self._is_recorded(section):
            raise Rejected(
                Reason.UNSUPPORTED, detail if field != "options" else f"the recorded {section}.{field}: {detail}"
            )
        raise ConfigError(f"{section}.{field}: {detail}")


def adapted(record: Mapping[str, Any], buffer_size: int) -> dict[str, object]:
    """The record of a version that was made at so many updates, because so many clients took part."""
    return {**record, "aggregation": {**record["aggregation"], "buffer_size": buffer_size}, _ADAPTED: True}


def _without_size(aggregation: object) -> object:
    """Another strategy adapts in its own way, or not at all."""
    return {**aggregation, "buffer_size": None} if isinstance(aggregation, Mapping) else aggregation


_NAMED = {"aggregation": "strategy", "staleness": "kind", "server_optimizer": "name"}
"""The field of each section that names what is open."""
_KINDS: Mapping[str, tuple[Kind, Mapping[str, Callable[..., Any]]]] = {
    "aggregation": (STRATEGIES, STRATEGIES_BUILT_IN),
    "staleness": (STALENESS, staleness.BUILT_IN),
    "server_optimizer": (SERVER_OPTIMIZERS, OPTIMIZERS_BUILT_IN),
}


def _packages(recorded: Mapping[str, object]) -> dict[str, Package]:
    match recorded.get(_PACKAGES):
        case None:
            return {}
        case Mapping() as found:
            try:
                return {str(section): Package(str(name), str(version)) for section, (name, version) in found.items()}
            except (TypeError, ValueError):
                pass
    raise Rejected(Reason.UNSUPPORTED, "this release does not understand the recorded rule's packages")


def _section(kind: type[S], name: str, recorded: Mapping[str, object], changes: Changes) -> S:
    found = recorded.get(name)
    try:
        fields: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {}
        if fields and kind is AggregationSettings:
            fields = {**_BEFORE, **fields}
        settings = kind.model_validate(fields)
    except ValueError:
        raise Rejected(Reason.UNSUPPORTED, f"this release does not understand the recorded rule's {name}") from None
    if not fields:
        raise Rejected(Reason.UNSUPPORTED, f"the version does not record its rule's {name}")
    if name not in changes:
        return settings
    if _NAMED[name] in changes[name]:
        fields.pop("options", None)  # they were another rule's
    return kind.model_validate({**fields, **changes[name]})
