"""How far back the log allows a run to be told again."""

from collections.abc import Set

from llmos_stream.replay.errors import Missing, UpdateMissing
from llmos_stream.replay.log import ReplayLog


async def kept_span(log: ReplayLog, numbers: range, without: Set[str]) -> tuple[int, str | None]:
    """The version to begin from: the oldest from which every later update of `numbers` is in the log.

    With it, what keeps it from being the parent of the first of `numbers`. Updates of the clients in
    `without` need not be there. Raises Missing when not even the newest version can be told again.
    """
    index = log.index
    newest = numbers.stop - 1
    index.entry(newest)
    manifests = [entry.head.manifest for number, entry in index.versions.items() if number in numbers]
    source = await log.updates((item for items in manifests for item in items), index.layout(newest))
    why: str | None = None
    first = newest
    while first >= numbers.start and why is None:
        try:
            head = index.entry(first).head
            if head.parent is None:
                break
            if head.parent != first - 1 or head.parent not in index.versions:
                raise Missing(f"version {head.parent}, the parent of {first}, is not in the log")
            for item in head.manifest:
                if item.client_id not in without:
                    source.check_kept(item)
        except UpdateMissing as missing:
            if not missing.gone:
                raise
            why = str(missing)
        except Missing as missing:
            why = str(missing)
        else:
            first -= 1
    if first == newest:
        raise Missing(why or f"version {newest} is where the log begins: there is nothing to tell again")
    return first, why
