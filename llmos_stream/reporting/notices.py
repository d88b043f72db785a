"""What an operator should look at, in sentences: for the page and the report."""

from collections.abc import Iterator, Mapping, Sequence

from llmos_stream.reporting import wording
from llmos_stream.reporting.history.clients import ClientStats
from llmos_stream.reporting.history.fold import History

_IN_A_ROW = 3
_LONG_MS = 30_000
"""A client that sends seldom is shut out when fewer were refused, and none counted for so long."""
_HINTS = {
    "too_stale": " (staleness.maximum, or with fedasync aggregation.history, may be too low for them; fedavg folds the "
    "quickest of each round alone)"
}
_NAMED = 5


def notices(history: History, passed_over: Mapping[str, int]) -> list[str]:
    """List what is wrong. `passed_over` counts the records by topic that no writer of the federation wrote."""
    return [*_collapsed(history), *_refused(history), *_repeating(history), *_foreign(passed_over)]


def _collapsed(history: History) -> Iterator[str]:
    found = history.collapse
    if found is None:
        return
    loss = "not a finite number" if found.loss is None else wording.number(found.loss)
    best = ""
    if found.best_version is not None and found.best_loss is not None:
        best = f", where version {found.best_version} has {wording.number(found.best_loss)}"
    back = history.gone_back
    if back is not None and back[0] > found.version:
        done = f"Version {back[0]} goes back to version {back[1]}."
    elif found.action == "pause":
        done = "The federation was paused for it (guard.on_collapse): llmos-stream resume lets it go on."
    elif found.action == "rollback":
        done = "A version that goes back to the best one is to come (guard.on_collapse)."
    else:
        done = "Nothing was done about it (guard.on_collapse)."
    yield f"The model has collapsed: the loss of version {found.version} is {loss}{best}. {done}"


def _refused(history: History) -> Iterator[str]:
    shut_out: dict[str, list[ClientStats]] = {}
    for client in history.clients:
        long = history.end_ms is not None and history.end_ms - client.refused_since_ms >= _LONG_MS
        if client.refused_in_a_row >= _IN_A_ROW or (client.refused_in_a_row and long):
            shut_out.setdefault(client.last_reason, []).append(client)
    for reason, clients in shut_out.items():
        hint = _HINTS.get(reason, "")
        yield (
            f"Every update of {_names(clients)} has been refused lately: {wording.plain(reason, 60)}{hint}. "
            "What such a client learns does not reach the model."
        )


def _repeating(history: History) -> Iterator[str]:
    clients = [client for client in history.clients if client.repeated_in_a_row >= _IN_A_ROW]
    if clients:
        yield (
            f"The updates of {_names(clients)} only repeat what was folded before, and are dropped. "
            "Perhaps two machines have one client.id, or a client's state folder was put back to an older one."
        )


def _foreign(passed_over: Mapping[str, int]) -> Iterator[str]:
    topics = [f"{count} in {topic}" for topic, count in passed_over.items() if count]
    if topics:
        records = wording.plural(sum(passed_over.values()), "record")
        yield f"Passed over {records} that no writer of this federation wrote: {wording.listed(topics)}."


def _names(clients: Sequence[ClientStats]) -> str:
    names = [wording.plain(client.client_id, 40) for client in clients[:_NAMED]]
    more = len(clients) - len(names)
    return wording.listed([*names, *([f"{wording.count(more)} more"] if more else [])])
