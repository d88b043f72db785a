"""The client role: join, then train on the newest version and publish, until the run ends or it is time to leave."""

import logging
from contextlib import nullcontext, suppress
from dataclasses import replace

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.core.client_policy import train_seconds
from llmos_stream.errors import FederationFinished, Rejected
from llmos_stream.log.federation import Federation
from llmos_stream.log.record_tracing import update_span, version_attributes
from llmos_stream.log.topics import check_chunks_fit
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.alone import AloneTraining
from llmos_stream.roles.client.cross_site import CrossSite, weights_after
from llmos_stream.roles.client.identity import client_id_of
from llmos_stream.roles.client.participation import Participation
from llmos_stream.roles.client.personal import PersonalPart
from llmos_stream.roles.client.session import Client
from llmos_stream.roles.client.state import ClientState
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.telemetry.tracing import follow, span
from llmos_stream.training import LocalTrainer, Task, task_errors
from llmos_stream.training.hooks import hooks_of
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.personal import check_head_epochs
from llmos_stream.training.shared_model import LocalModel, Trained
from llmos_stream.training.site_evaluator import SiteEvaluator, ValidationData
from llmos_stream.types import TOKENS

logger = logging.getLogger(__name__)

_LAST_WORDS, _LAST_WORD_SECONDS = 4, 0.3


async def run_client(
    broker: Broker,
    settings: Settings,
    task: Task,
    state: ClientState,
    offload: Offload,
    shutdown: Shutdown,
    clock: Clock = SYSTEM_CLOCK,
) -> int:
    """Take part until the run ends, `client.max_updates` is reached or a stop is asked for.

    While the broker does not answer it keeps trying and goes on where it was. Returns how many updates were sent.
    """
    federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown, clock)
    training = _TrainingClient(federation, settings, task, state)
    if not await federation.wait(settings.client.join_delay_seconds):
        await federation.keep_trying(training.take_part, "joining again")
    return training.participation.updates


class _TrainingClient:
    """What a client keeps while it loses the broker and finds it again."""

    def __init__(self, federation: Federation, settings: Settings, task: Task, state: ClientState) -> None:
        self.participation = Participation(settings.client, federation.clock)
        self._federation = federation
        self._settings = settings
        self._personal = PersonalPart(state.folder, task.share)
        self._task = task
        self._state = state
        self._entry = settings.task.entry
        with task_errors(self._entry):
            # One object: it orders each of its passes differently.
            batches = task.train_batches(settings.client.shard)
        self._steps = LocalSteps(batches, settings.client.epochs, settings.client.local_steps)
        self._local: LocalModel | None = None
        self._evaluator: SiteEvaluator
        self._alone: AloneTraining | None = None
        self._cross_site: CrossSite | None = None
        self._joined = False

    async def take_part(self) -> None:
        """Take part from the first version to the last over one connection.

        Raises:
            NotWanted: the operator does not want this client.
            BrokerUnavailable: the broker does not answer. Call it again then.
        """
        federation, participation = self._federation, self.participation
        if not await federation.wait_for_topics(*Client.needs(federation.topics)):
            return
        await check_chunks_fit(federation.broker, federation.wire, [federation.topics.updates])
        if self._local is None:
            self._local = await federation.run(self._make_model)
            data, own = ValidationData(self._task.validation_batches, self._task.metrics), self._settings.client
            self._evaluator = SiteEvaluator(self._local, self._task.loss, data, own.evaluate_every)
            if own.train_alone:
                self._alone = AloneTraining(federation, self._settings, self._task, self._local, data)
            if own.share_local:
                self._cross_site = self._make_cross_site(self._local, data)
        client_id = client_id_of(self._settings.client)
        async with (
            Client(
                federation, client_id, self._local.layout, self._settings.codec, self._state, self._settings.client
            ) as client,
            nullcontext() if self._cross_site is None else self._cross_site.connected(),
        ):
            if not self._joined:
                with task_errors(self._entry):
                    num_examples = self._task.num_train_examples(self._settings.client.shard)
                await client.joined(num_examples)
                self._joined = True
            participation.resume()
            while (version := await participation.next_version(client)) is not None:
                if self._evaluator.is_due(version.head.number):
                    await self._measure(client, version)
                if self._cross_site is not None:
                    await self._cross_site.measure(client, version)
                await self._update(client, self._local, version)
                if self._alone is not None and not federation.shutdown.requested:
                    await self._train_alone(self._alone, client, version)
                if self._cross_site is not None:
                    await self._cross_site.send()
            await self._measure_last(client)
            await self._last_word(client)
            logger.info("leaving after %d updates: %s", participation.updates, participation.reason_to_leave)
            await client.leave(participation.reason_to_leave, participation.updates)

    async def _measure(self, client: Client, version: Version) -> None:
        """Measure a version on the site's own data, before it is trained on."""
        number = version.head.number
        with task_errors(self._entry), follow("client.evaluate", client.version_span, version_attributes(version.head)):
            found = await self._federation.run(self._evaluator.measure, number, version.weights)
        if found is not None:
            await client.events.measured(found)
        if self._alone is not None:
            await self._alone.measure(client, version)

    async def _measure_last(self, client: Client) -> None:
        """The version that a run has ended with is measured, too, though nobody trains on it."""
        if client.finished is None or self._federation.shutdown.requested:
            return
        version = await self.participation.newest(client)
        if version is not None and self._evaluator.is_new(version.head.number):
            await self._measure(client, version)
        if version is not None and self._cross_site is not None:
            await self._cross_site.measure(client, version, is_last=True)

    async def _last_word(self, client: Client) -> None:
        """Hear what becomes of the last updates, as far as that is soon."""
        for _ in range(_LAST_WORDS):
            if not client.outcomes.waiting or client.finished or self._federation.shutdown.requested:
                return
            await client.listen(_LAST_WORD_SECONDS)

    async def _update(self, client: Client, local: LocalModel, version: Version) -> None:
        """Train and publish, unless a stop or the end of the run cuts it short."""
        with update_span(client.client_id, version.head.number, client.version_span):
            with span("client.train"):
                settings = client.settings
                self._steps.use(settings.epochs, settings.local_steps)
                version = replace(version, weights=await client.start_from(version))
                trained = await self._train(local, version, client.heard().steps_per_second)
            if trained.stopped:
                return
            if self._cross_site is not None and self._alone is None:
                since = version.head.number
                await self._cross_site.keep(client, since, since, lambda: weights_after(local, version, trained))
            try:
                with suppress(Rejected):  # too old by now, as the client has said
                    await self.participation.publish(client, trained)
            except FederationFinished:
                logger.info("the run ended while this client was training")

    async def _train_alone(self, alone: AloneTraining, client: Client, version: Version) -> None:
        await alone.train(version, client.heard().steps_per_second)
        weights, since = alone.model.weights, alone.model.since
        if self._cross_site is not None and weights is not None and since is not None:
            await self._cross_site.keep(client, version.head.number, since, lambda: weights)

    async def _train(self, local: LocalModel, version: Version, fastest: float) -> Trained:
        batches, own_first = self._steps.passes(fastest), self._steps.whole(self._settings.client.head_epochs)
        shutdown = self._federation.shutdown
        with task_errors(self._entry):
            # Momentum gathered on an older version does not belong to this one.
            local.trainer.optimizer = self._task.optimizer(local.trainer.model)
            trained = await self._federation.run(
                local.train, version.weights, version.head.number, batches, lambda: shutdown.requested, own_first
            )
        if not trained.stopped:
            await self._federation.run(self._personal.keep, local.trainer.model)
        share = self._steps.share(trained.steps)
        told = self._steps.done(trained.steps, train_seconds(self._settings.client, trained.seconds, share))
        if self._task.counts_tokens:
            told[TOKENS] = float(trained.num_examples)
        weight = self._steps.weight(trained.num_examples)
        return replace(trained, num_examples=weight, metrics={**trained.metrics, **told}, share=share)

    def _make_cross_site(self, local: LocalModel, data: ValidationData) -> CrossSite:
        with task_errors(self._entry):
            measures = self._settings.client.evaluate_every > 0 and data.batches() is not None
        evaluator = SiteEvaluator(local, self._task.loss, data, 1) if measures else None
        return CrossSite(self._federation, self._settings.client, local, evaluator, self._entry)

    def _make_model(self) -> LocalModel:
        with task_errors(self._entry):
            model = self._task.model()
            share = self._task.share
            hooks = (*self._task.hooks(), *hooks_of(self._settings.client, share))
            trainer = LocalTrainer(model, self._task.optimizer(model), self._task.loss, hooks)
        local = LocalModel(trainer, share)
        if self._settings.client.head_epochs:
            check_head_epochs(model, share)
        self._personal.restore(model)
        return local
