"""A version with its weights, wherever it is: in the log, or else in the registry where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import RegistrySettings
from llmos_stream.errors import NotFound, OffsetGone, Rejected, TopicMissing
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import VersionIndex, version_index
from llmos_stream.log.standing import LocatedVersion
from llmos_stream.registry.store import open_store

_NAMED = 10
_FETCH_SECONDS = 120.0


@dataclass(frozen=True, slots=True, eq=False)
class KeptVersion:
    """A version: its weights (flat, float32), the digest in its head, and whether they are from the registry."""

    number: int
    layout: Layout
    weights: Tensor
    digest: bytes
    archived: bool


async def find_version(federation: Federation, registry: RegistrySettings, number: int | None) -> KeptVersion:
    """Return a version, by default the newest.

    Raises:
        NotFound: It is nowhere, or cannot be read; it says what there is.
        TopicMissing: The log has no such federation, nor has a registry.
        StoreUnavailable: The registry is needed and does not answer.
    """
    try:
        return await _logged(federation, number)
    except (NotFound, TopicMissing) as error:
        if registry.url is None:
            raise
        return await federation.run(_archived, registry, federation.name, number, str(error))


async def find_in_log(index: VersionIndex, federation: str, number: int | None) -> LocatedVersion:
    """Return a version, by default the newest.

    Raises:
        NotFound: The log does not hold it.
    """
    found = await index.newest() if number is None else await index.find(number)
    if found is not None:
        return found
    oldest, newest = await index.oldest(), await index.newest()
    if oldest is None or newest is None:
        raise NotFound(nothing_in_log(federation))
    raise NotFound(f"version {number} is not in the log, which holds {oldest.head.number} to {newest.head.number}")


def nothing_in_log(federation: str) -> str:
    """Say that the log holds no version."""
    return f"federation {federation} has no versions in the log; is its aggregator running?"


async def _logged(federation: Federation, number: int | None) -> KeptVersion:
    topic = federation.topics.models
    async with version_index(federation.broker, topic) as index:
        found = await find_in_log(index, federation.name, number)
        at = await index.stands_on(found)
    where = f"version {found.head.number} at {topic} offset {found.offset}"
    if at is None:
        raise NotFound(f"{where} stands on a full version that is no longer in the log")
    async with federation.reader(topic, "latest", check_crcs=False) as reader:
        try:
            version = await federation.replica(reader).move_to(at, _FETCH_SECONDS)
        except OffsetGone:
            raise NotFound(f"{where} has just been deleted") from None
        except Rejected as error:
            raise NotFound(f"{where} cannot be read: {error}") from None
    return KeptVersion(version.head.number, version.layout, version.weights, version.head.weights_digest, False)


def _archived(registry: RegistrySettings, federation: str, number: int | None, why_not: str) -> KeptVersion:
    """`why_not` says why it is not taken from the log."""
    store = open_store(registry, federation)
    held = store.numbers()
    if not held or (number is not None and number not in held):
        raise NotFound(f"{why_not}; the registry holds {_listed(held)}")
    entry, weights = store.load(held[-1] if number is None else number)
    return KeptVersion(entry.version, entry.layout, weights, entry.weights_digest, True)


def _listed(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    named = ", ".join(map(str, numbers[-_NAMED:]))
    return named if len(numbers) <= _NAMED else f"{len(numbers)} versions, the newest {named}"
