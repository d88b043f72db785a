"""How clients of one Kafka cluster are made and started."""

import asyncio
import itertools
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar

import aiokafka.errors as theirs
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.helpers import create_ssl_context

from llmos_stream.broker.kafka.heap import keep_freed
from llmos_stream.broker.kafka.quiet import calm_aiokafka, collected_reasons
from llmos_stream.broker.kafka.quirks import AnyClient, described_topics, network_of, uninterrupted
from llmos_stream.broker.kafka.translate import AIOKAFKA_ERRORS, translate
from llmos_stream.broker.kafka.tuning import produce_options
from llmos_stream.broker.rules import topic_missing
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import BrokerError, BrokerUnavailable, ConfigError, TopicMissing

_numbers = itertools.count(1)
_Client = TypeVar("_Client")

_NOT_LET_IN = (
    theirs.AuthenticationFailedError,
    theirs.SaslAuthenticationFailed,
    theirs.UnsupportedSaslMechanismError,
    ssl.SSLCertVerificationError,
)
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_TOPIC_SECONDS = 1.0
_SETTLE_SECONDS = 1.0


class Connection:
    """Where the cluster is and how to talk to it. Holds no socket; every client made from it has its own.

    Raises ConfigError when no server is named, a certificate cannot be read, or a compression's package is missing.
    """

    def __init__(self, settings: BrokerSettings) -> None:
        if settings.bootstrap_servers is None:
            raise ConfigError(
                "broker.bootstrap_servers: not set; name a Kafka (LLMOS_BROKER__BOOTSTRAP_SERVERS=HOST:PORT), "
                "start one with `llmos-stream broker start`, or run an embedded federation"
            )
        calm_aiokafka()
        keep_freed(settings.heap_bytes)
        self.settings = settings
        self.address = settings.bootstrap_servers
        self._ssl = _ssl_context(settings)
        produce_options(settings)  # what a role needs when it writes, it says when it starts

    def options(self) -> dict[str, Any]:
        """Keyword arguments that every aiokafka client takes; the client id is a new one each time."""
        settings = self.settings
        password = settings.sasl_password
        return {
            "bootstrap_servers": [server.strip() for server in self.address.split(",") if server.strip()],
            "client_id": f"llmos-{socket.gethostname()}-{os.getpid()}-{next(_numbers)}",
            "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
            "security_protocol": settings.security_protocol,
            "ssl_context": self._ssl,
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": None if password is None else password.get_secret_value(),
        }

    async def start(
        self,
        make: Callable[[], _Client],
        start: Callable[[_Client], Awaitable[None]],
        stop: Callable[[_Client], Awaitable[None]],
    ) -> _Client:
        """A started client, with retries until `connect_timeout_seconds`; what failed to start is stopped.

        Raises BrokerUnavailable, or at once what a retry cannot mend.
        """
        pause = _FIRST_PAUSE_SECONDS
        with collected_reasons() as reasons:
            try:
                async with asyncio.timeout(self.settings.connect_timeout_seconds):
                    while True:
                        client = make()
                        try:
                            await uninterrupted(start(client), seconds=_SETTLE_SECONDS)
                        except BaseException as error:
                            await uninterrupted(stop(client), seconds=_SETTLE_SECONDS)
                            if not isinstance(error, AIOKAFKA_ERRORS):
                                raise
                            self._raise_what_stays(error, reasons)
                        else:
                            return client
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            except TimeoutError:
                # What hangs up on another protocol says nothing.
                why = f" ({str(reasons[-1]) or type(reasons[-1]).__name__})" if reasons else ""
                raise BrokerUnavailable(
                    f"no Kafka answers at {self.address} after {self.settings.connect_timeout_seconds:g} s{why}; "
                    "a listener with another broker.security_protocol than "
                    f"{self.settings.security_protocol} hangs up, and its advertised.listeners must be reached; "
                    "check LLMOS_BROKER__BOOTSTRAP_SERVERS, or start one with `llmos-stream broker start`"
                ) from None

    def _raise_what_stays(self, error: BaseException, reasons: Sequence[object]) -> None:
        """Raise what trying again would not change: a wrong password should not be tried ten times."""
        for reason in reasons:
            if isinstance(reason, _NOT_LET_IN):
                raise BrokerError(
                    f"Kafka at {self.address} refused our credentials or has a certificate we do not trust ({reason}); "
                    "check LLMOS_BROKER__SECURITY_PROTOCOL, LLMOS_BROKER__SASL_* and LLMOS_BROKER__SSL_*"
                ) from error
        if isinstance(error, theirs.InvalidTransactionTimeout):
            raise ConfigError(
                f"broker.transaction_timeout_seconds: {self.settings.transaction_timeout_seconds:g} is more than "
                f"Kafka at {self.address} allows (transaction.max.timeout.ms of its brokers); lower it"
            ) from error
        translated = translate(error, self.address)
        if not translated.retriable:
            raise translated from error

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """A short-lived admin client."""
        client = await self.start(
            lambda: AIOKafkaAdminClient(**self.options()), AIOKafkaAdminClient.start, AIOKafkaAdminClient.close
        )
        try:
            with self._translating(client):
                yield client
        finally:
            await client.close()

    async def partitions(self, topics: Sequence[str], seconds: float, client: AnyClient) -> dict[str, int]:
        """How many partitions each topic has. Asks through `client` for about `seconds` while no broker answers.

        Raises TopicMissing, when a topic is not there a second after it was looked for first.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return await self._partitions(topics, client)
            except BrokerUnavailable:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)

    async def check_there(self, topics: Sequence[str]) -> dict[str, int]:
        """The same once, through a connection of its own: others may wait for what is gone."""
        async with self.admin() as admin:
            return await self._partitions(topics, admin)

    async def _partitions(self, topics: Sequence[str], client: AnyClient) -> dict[str, int]:
        deadline = time.monotonic() + _TOPIC_SECONDS
        while True:
            with self._translating(client):
                present = await topic_partitions(client, topics)
            missing = [topic for topic in topics if topic not in present]
            if not missing:
                return {topic: len(present[topic]) for topic in topics}
            if time.monotonic() > deadline:
                raise TopicMissing(topic_missing(missing[0]))
            await asyncio.sleep(_FIRST_PAUSE_SECONDS)

    @contextmanager
    def _translating(self, client: AnyClient) -> Iterator[None]:
        try:
            yield
        except theirs.NodeNotReadyError as error:
            raise BrokerUnavailable(
                f"Kafka at {self.address} answers, but a broker that it names does not; reachable from here must be "
                f"each of its advertised.listeners: {_advertised(client)}"
            ) from error
        except AIOKAFKA_ERRORS as error:
            raise translate(error, self.address) from error


class Partition(NamedTuple):
    """The leader of a partition (-1 where there is none just now), and how many replicas it has."""

    leader: int
    replicas: int


async def topic_partitions(client: AnyClient, topics: Sequence[str] | None = None) -> dict[str, list[Partition]]:
    """Those of `topics` that are there, or all that there are, each with its partitions."""
    return {
        topic["topic"]: [Partition(part["leader"], len(part["replicas"])) for part in topic["partitions"]]
        for topic in await described_topics(client, topics)
        if topic["partitions"]
    }


def _advertised(client: AnyClient) -> str:
    """Under which addresses the brokers want to be met."""
    return ", ".join(sorted(f"{broker.host}:{broker.port}" for broker in network_of(client).cluster.brokers()))


def _ssl_context(settings: BrokerSettings) -> ssl.SSLContext | None:
    if settings.security_protocol not in {"SSL", "SASL_SSL"}:
        return None
    try:
        context: ssl.SSLContext = create_ssl_context(
            cafile=settings.ssl_cafile, certfile=settings.ssl_certfile, keyfile=settings.ssl_keyfile
        )
    except OSError as error:  # ssl.SSLError is one
        files = f"{settings.ssl_cafile}, {settings.ssl_certfile}, {settings.ssl_keyfile}"
        raise ConfigError(f"broker.ssl_cafile, ssl_certfile, ssl_keyfile: {error} ({files})") from None
    return context
