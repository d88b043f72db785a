"""Who may take part, as pure functions of what the operator says. See `config.participation` for the settings."""

from fnmatch import fnmatchcase

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import ClientOrder, ParticipationRules, UpdateHead


def why_unwanted(client_id: str, rules: ParticipationRules, order: ClientOrder | None) -> str | None:
    """Why this client is not wanted; None where it is."""
    if order is not None and order.forbidden:
        return f"the operator has forbidden client {client_id}{f': {order.reason}' if order.reason else ''}"
    if not any(fnmatchcase(client_id, pattern) for pattern in rules.clients):
        return f"client {client_id} is none of those who take part (participation.clients)"
    return None


def check_wanted(head: UpdateHead, rules: ParticipationRules, order: ClientOrder | None) -> None:
    """Raise Rejected (NOT_WANTED or TOO_FEW_EXAMPLES) for an update that the operator does not want."""
    if (why := why_unwanted(head.client_id, rules, order)) is not None:
        raise Rejected(Reason.NOT_WANTED, why)
    if 0 < head.num_examples < rules.min_examples:  # what is no number of examples is told by `check_head`
        raise Rejected(
            Reason.TOO_FEW_EXAMPLES,
            f"{head.num_examples} examples, the operator asks for {rules.min_examples} (participation.min_examples)",
        )


def check_room(known: bool, others: int, rules: ParticipationRules) -> None:
    """Raise Rejected (TOO_MANY_CLIENTS) for a client that is not `known` to take part while so many others do."""
    if rules.at_once is not None and not known and others >= rules.at_once:
        raise Rejected(
            Reason.TOO_MANY_CLIENTS, f"{others} clients take part, and no more may at once (participation.at_once)"
        )
