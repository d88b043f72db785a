"""Taking part as the policy says: performs what `core.client_policy` decides, and does the waiting."""

import logging
from dataclasses import replace

from llmos_stream.config import ClientSettings
from llmos_stream.core import client_policy as policy
from llmos_stream.core.client_policy import PolicyAction, PolicyEvent, WaitReason
from llmos_stream.errors import FederationFinished, Rejected
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.sending import Published
from llmos_stream.roles.client.session import Client
from llmos_stream.runtime import Clock
from llmos_stream.training.shared_model import Trained

logger = logging.getLogger(__name__)

_SAY_SECONDS = 3.0
_LINK_SECONDS = 0.5


class Participation:
    """A client's part in a run, kept while connections come and go: `next_version` and `publish` in turn."""

    def __init__(self, rules: ClientSettings, clock: Clock, most_doublings: int = policy.MOST_DOUBLINGS) -> None:
        self._rules = rules
        self._clock = clock
        self._state = policy.join(rules, clock.monotonic(), most_doublings)
        self._waits_for: WaitReason | None = None
        self._waits_since = 0.0
        self._has_said = False
        self.version: Version | None = None
        """The newest version that was received. Its weights are good until the next one is."""
        self.reason_to_leave = ""

    @property
    def updates(self) -> int:
        """How many updates were sent."""
        return self._state.updates

    def resume(self) -> None:
        """Begin, or begin again over another connection. What was under way has come to nothing."""
        self._observe(policy.Resumed())

    async def next_version(self, client: Client) -> Version | None:
        """The version to train on, once it is time to train; None once it is time to leave.

        An update that an earlier connection or process left unsent is sent first.
        """
        if self._state.in_update:
            await self._cut_short(client)
        while True:
            match await self._next_action(client):
                case policy.Train():
                    if (version := await self.newest(client)) is not None:
                        return version
                    await self._cut_short(client)  # by a stop
                case policy.SendUnsent():
                    self._observe(policy.UnsentSettled(await client.send_unsent() is not None))
                case _:
                    return None

    async def publish(self, client: Client, trained: Trained) -> Published | None:
        """Send an update as soon as this client's speed and the pace allow it.

        None when a stop comes first, and with `client.overlap`: it is sent while the client goes on.

        Raises:
            FederationFinished: the run has ended. Other errors are those of `Client.publish`.
        """
        self._observe(policy.TrainingDone(trained.base_version, trained.seconds, trained.share))
        if isinstance(await self._next_action(client), policy.Leave):
            if client.finished is None:
                return None
            raise FederationFinished(f"the run has ended: {client.finished.reason}")
        trained = replace(trained, seconds=policy.train_seconds(self._rules, trained.seconds, trained.share))
        try:
            if self._rules.overlap:
                await client.launch(await client.put(trained))
                self._observe(policy.UpdateKept())
                return None
            published = await client.publish(trained)
        except Rejected:
            self._observe(policy.UpdateRefused())
            raise
        self._observe(policy.UpdateSent())
        return published

    async def newest(self, client: Client, seconds: float = 0.0) -> Version | None:
        """The newest version, waiting for at most `seconds` where there is none newer than the one held.

        None where none is held and none came.
        """
        above = None if self.version is None else self.version.head.number
        self.version = await client.newest(above, seconds) or self.version
        return self.version

    def seconds_to_newer(self, client: Client) -> float:
        """For how long the client waits for a version that is newer than the one of its last update."""
        self._observe(client.heard())
        return max(policy.expected_by(self._state) - self._clock.monotonic(), 0.0)

    async def _next_action(self, client: Client) -> PolicyAction:
        """What to do next, once that is something else than to wait or to look."""
        while True:
            if client.flight is not None and client.flight.arrived_at is not None:
                await self._land(client)
            now = self._clock.monotonic()
            self._state, action = policy.next_action(self._state, client.heard(), now)
            match action:
                case policy.Wait():
                    self._say(action, now, client)
                    if action.reason is WaitReason.LINK and client.flight is not None:
                        await client.flight.wait(_LINK_SECONDS)
                        await client.listen(0.0)
                    else:
                        await client.listen(action.until - now)
                case policy.Look():
                    await client.look()
                case _:
                    self._waits_for = None
                    if isinstance(action, policy.Leave):
                        self.reason_to_leave = action.reason
                    return action

    async def _cut_short(self, client: Client) -> None:
        """Nothing comes of what was trained or was to be; what is in flight arrives all the same."""
        if client.flight is not None:
            await self._land(client)
        self.resume()

    async def _land(self, client: Client) -> None:
        """Wait for what is in flight, and note what came of it when it did."""
        flight = client.flight
        event: PolicyEvent = policy.UpdateSent()
        try:
            await client.land()
        except Rejected:
            event = policy.UpdateRefused()
        arrived_at = None if flight is None else flight.arrived_at
        self._state = policy.observe(self._state, event, self._clock.monotonic() if arrived_at is None else arrived_at)

    def _observe(self, event: PolicyEvent) -> None:
        self._state = policy.observe(self._state, event, self._clock.monotonic())

    def _say(self, wait: policy.Wait, now: float, client: Client) -> None:
        if wait.reason is not self._waits_for:
            self._waits_for, self._waits_since, self._has_said = wait.reason, now, False
            if wait.reason is WaitReason.PACE:
                logger.debug("%.1f s too early for the pace that the aggregator asks for", wait.until - now)
        elif not self._has_said and now - self._waits_since >= _SAY_SECONDS:
            if wait.reason is WaitReason.PAUSE:
                logger.warning("the federation is paused: waiting until it goes on")
            elif wait.reason is WaitReason.ROOM:
                logger.warning("as many clients take part as the operator wants at once: trying again in a while")
            elif client.heard().newest is None:
                logger.warning("the federation has no version yet: waiting for its aggregator")
            self._has_said = True
