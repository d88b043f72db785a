"""Which clients' updates the aggregator takes, by its settings and by what operators say while it runs."""

from llmos_stream.config import ParticipationSettings
from llmos_stream.core import Participants
from llmos_stream.core.participation import check_room, check_wanted
from llmos_stream.log.control import ControlView
from llmos_stream.runtime import Clock
from llmos_stream.types import ParticipationRules, UpdateHead


def rules_of(settings: ParticipationSettings) -> ParticipationRules:
    """The settings as the control topic has them."""
    return ParticipationRules(tuple(settings.clients.split(",")), settings.at_once, settings.min_examples)


class Gate:
    """Refuses by the head alone."""

    def __init__(
        self, rules: ParticipationRules, control: ControlView, participants: Participants, clock: Clock
    ) -> None:
        self._rules = rules
        self._control = control
        self._participants = participants
        self._clock = clock

    def check_head(self, head: UpdateHead) -> None:
        """Before anything is collected. Raises Rejected."""
        check_wanted(head, self._rules, self._control.orders.get(head.client_id))

    def check_room(self, head: UpdateHead) -> None:
        """Just before it is folded: who takes part is known by then. Raises Rejected."""
        now = self._clock.monotonic()
        known = self._participants.has(head.client_id, now)
        check_room(known, self._participants.count(now), self._rules)
