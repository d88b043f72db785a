"""Weights that a federation begins with, other than those of its task: a file's, or another federation's.

Version 0 alone can be made so. It records where its weights are from, and so does every version after it.
"""

import hashlib
import logging
from collections.abc import Collection, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmos_stream.broker import Topics
from llmos_stream.codec import Layout
from llmos_stream.config import RegistrySettings, Settings, did_you_mean
from llmos_stream.errors import ConfigError, NotFound, TopicMissing
from llmos_stream.log.federation import Federation
from llmos_stream.registry.lookup import find_version
from llmos_stream.types import TensorKind, TensorSpec

logger = logging.getLogger(__name__)

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class _Start:
    """What both say of weights that do not fit. `setting` names them to their owner."""

    setting: str

    def _names(
        self, where: str, given: Mapping[str, TensorSpec], layout: Layout, others: Set[str]
    ) -> dict[str, list[str]]:
        """Under which names each tensor of the layout is given. A tied one may be under any of its own."""
        specs = {spec.name: spec for spec in layout.tensors}
        known = {**specs, **{further: specs[name] for further, name in layout.tied.items()}}
        unknown = [name for name in given if name not in known and name not in others]
        found: dict[str, list[str]] = {name: [] for name in specs}
        for name, spec in known.items():
            if name in given:
                self._check(where, name, given[name], spec)
                found[spec.name].append(name)
        for name, names in found.items():
            if not names:
                self._refuse(f"{where} has no {name}{_hint(name, unknown)}")
        if unknown:
            self._refuse(f"{where} has {unknown[0]}, which the task's model has not{did_you_mean(unknown[0], known)}")
        if left := [name for name in given if name in others]:
            logger.warning("%s: not shared, so left as the task has it: %s", where, ", ".join(left[:5]))
        return found

    def _check(self, where: str, name: str, there: TensorSpec, here: TensorSpec) -> None:
        if there.shape != here.shape:
            self._refuse(f"{name} has shape {list(there.shape)} in {where} and {list(here.shape)} in the task's model")
        if there.dtype != here.dtype:
            self._refuse(f"{name} is {there.dtype} in {where} and {here.dtype} in the task's model")

    def _refuse(self, problem: str) -> NoReturn:
        raise ConfigError(f"{self.setting}: {problem}")


def warm_start_of(settings: Settings) -> "FileStart | VersionStart | None":
    """The one that the settings name, if they do: a `roles.aggregator.WarmStart`."""
    path, version = settings.aggregator.init, settings.aggregator.init_from
    if path is not None:
        return FileStart(path)
    return None if version is None else VersionStart(version, settings.registry)


class FileStart(_Start):
    """A safetensors file: a state dict under the plain model's names."""

    setting = "aggregator.init"

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_recorded(self, origin: Mapping[str, object]) -> bool:
        return origin.get("sha256") == self._digest()

    async def load(self, federation: Federation, layout: Layout, others: Set[str]) -> tuple[Tensor, dict[str, object]]:
        return await federation.run(self._load, layout, others)

    def _load(self, layout: Layout, others: Set[str]) -> tuple[Tensor, dict[str, object]]:
        origin: dict[str, object] = {"file": self._path.name, "sha256": self._digest()}
        try:
            with safe_open(self._path, "pt") as file:
                given = {name: _spec(name, file.get_slice(name)) for name in list(file.keys())}
                names = self._names(str(self._path), given, layout, others)
                tensors = {name: file.get_tensor(there[0]) for name, there in names.items()}
                for name, (_, *further) in names.items():
                    for other in further:
                        if not torch.equal(file.get_tensor(other), tensors[name]):
                            self._refuse(f"{other} and {name} differ in {self._path}, and are one in the task's model")
        except SafetensorError as error:
            self._refuse(f"{self._path} is no safetensors file ({error}); write it with safetensors.torch.save_file")
        for name, _, _, kind in layout.tensors:
            # A mask may hold infinities.
            fine = tensors[name].isnan().logical_not() if kind is TensorKind.BUFFER else tensors[name].isfinite()
            if not bool(fine.all()):
                self._refuse(f"{name} is not finite in {self._path}")
        return layout.flatten(tensors), origin

    def _digest(self) -> str:
        try:
            with self._path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            self._refuse(f"cannot read {self._path}: {error.strerror or error}")


class VersionStart(_Start):
    """A version of a federation, `NAME` (its newest) or `NAME:VERSION`: from the log, or else from the registry."""

    setting = "aggregator.init_from"

    def __init__(self, text: str, registry: RegistrySettings) -> None:
        self._name, _, number = text.partition(":")
        self._number = int(number) if number else None
        self._registry = registry

    def is_recorded(self, origin: Mapping[str, object]) -> bool:
        return origin.get("federation") == self._name and self._number in (None, origin.get("version"))

    async def load(self, federation: Federation, layout: Layout, others: Set[str]) -> tuple[Tensor, dict[str, object]]:
        try:
            found = await find_version(replace(federation, topics=Topics(self._name)), self._registry, self._number)
        except (NotFound, TopicMissing) as error:
            raise NotFound(f"{self.setting}: {error}") from None
        where = f"version {found.number} of federation {self._name}"
        specs = {spec.name: spec for spec in found.layout.tensors}
        given = {**specs, **{further: specs[name] for further, name in found.layout.tied.items()}}
        names = self._names(where, given, layout, others)
        origin: dict[str, object] = {
            "federation": self._name,
            "version": found.number,
            "weights_digest": found.digest.hex(),
        }
        if found.layout == layout:
            return found.weights.clone(), origin  # others may read them, in a federation within this process
        # Unlike `unflatten`, this keeps the precision of float32 where a tensor's own is lower.
        pieces = torch.split(found.weights, [spec.numel for spec in found.layout.tensors])
        tensors = {spec.name: piece.view(spec.shape) for spec, piece in zip(specs.values(), pieces, strict=True)}
        first = {name: found.layout.tied.get(there[0], there[0]) for name, there in names.items()}
        return layout.flatten({name: tensors[there] for name, there in first.items()}), origin


def _spec(name: str, piece: object) -> TensorSpec:
    """What a safetensors file says of a tensor, which is not read for it."""
    shape: Collection[int] = piece.get_shape()  # type: ignore[attr-defined]
    dtype: str = piece.get_dtype()  # type: ignore[attr-defined]
    return TensorSpec(name, tuple(shape), _DTYPES.get(dtype, dtype))


def _hint(name: str, unknown: Collection[str]) -> str:
    """Say under which other name it may be there."""
    if (longer := next((other for other in unknown if other.endswith(f".{name}")), None)) is not None:
        return f"; did you mean {longer}? Save the model that is inside {longer.removesuffix(f'.{name}')!r}"
    return did_you_mean(name, unknown) or (f"; it has {next(iter(unknown))} in its place" if unknown else "")
