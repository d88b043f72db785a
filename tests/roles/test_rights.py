"""Every role on a Kafka with ACLs, with the rights that the documentation lists for it and no others."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from pydantic import SecretStr

from llmos_stream.broker import Broker, LocalKafka, Topics, connect
from llmos_stream.broker.local.needs import free_ports
from llmos_stream.config import BrokerSettings, Settings
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.dashboard.follow import follow
from llmos_stream.errors import BrokerError
from llmos_stream.log.events import follow_events
from llmos_stream.registry import run_archiver
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.testing import until
from llmos_stream.training import load_task
from llmos_stream.types import Event, EventKind
from tests.cli.aids import Run
from tests.cli.fixtures import llmos
from tests.conftest import need_a_local_kafka
from tests.inference.following import serving_of
from tests.registry.aids import Folder, store_of
from tests.roles.aids import settings_for

__all__ = ["llmos"]
pytestmark = [pytest.mark.kafka, pytest.mark.own_kafka]

_SHARING = "sharing client"
_ROLES = ("aggregator", "client", _SHARING, "evaluator", "inference", "archiver", "monitor")
_NOBODY = "nobody"
_TOPIC, _GROUP, _TRANSACTIONAL_ID = 2, 3, 5
_READ, _WRITE = 3, 4
_LITERAL, _ALLOW = 3, 3
_VERSIONS = 2


def _table() -> dict[str, tuple[list[str], list[str]]]:
    """The documentation's: what each role may read and write."""
    text = (Path(__file__).parents[2] / "llmos_stream" / "docs" / "kafka.md").read_text()
    rows = text.partition("| role | Read on topics |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {
        re.sub(r" \(.*\)", "", role): (re.findall(r"\w+", reads), re.findall(r"\w+", writes))
        for role, reads, writes, _ in cells
    }


def test_the_table_has_every_role() -> None:
    assert set(_table()) == set(_ROLES)


def _user(role: str) -> str:
    """Whom a role signs in as."""
    return role.replace(" ", "_")


@dataclass(frozen=True)
class _Guarded:
    """A Kafka whose plain listener is an admin's, and whose other one is for users with rights of their own."""

    plain: str
    signed_in: str

    def as_user(self, name: str) -> BrokerSettings:
        return BrokerSettings(
            bootstrap_servers=self.signed_in,
            security_protocol="SASL_PLAINTEXT",
            sasl_username=_user(name),
            sasl_password=SecretStr(f"{_user(name)}-secret"),
        )

    async def allow(self, user: str, rights: Sequence[tuple[int, str, int]]) -> None:
        """Let a user do what these say: a kind of resource, its name and the operation."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.plain)
        await admin.start()
        try:
            for kind, name, operation in rights:
                request = CreateAclsRequest(kind, name, _LITERAL, f"User:{_user(user)}", "*", operation, _ALLOW)
                answer = await admin._send_request(request)
                assert [code for code, _ in answer.creation_responses] == [0]
        finally:
            await admin.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[_Guarded]:
    need_a_local_kafka()
    plain, signed_in, controller = free_ports(3)
    users = " ".join(f'user_{name}="{name}-secret"' for name in map(_user, (*_ROLES, _NOBODY)))
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    listeners = f"CLIENTS://127.0.0.1:{plain},AUTH://127.0.0.1:{signed_in}"
    properties = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "CLIENTS:PLAINTEXT,AUTH:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.auth.plain.sasl.jaas.config": f"{login} {users};",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
    }
    with LocalKafka(port=plain, properties=properties):
        yield _Guarded(f"127.0.0.1:{plain}", f"127.0.0.1:{signed_in}")


async def _grant(guarded: _Guarded, federation: str, roles: Sequence[str] = _ROLES) -> Settings:
    """Make the topics, as an admin does, and give each role what the table lists."""
    settings = settings_for(
        federation,
        task={"entry": "blobs"},
        client={"id": "c", "wait_seconds": 1.0},
        stop={"max_versions": _VERSIONS},
    )
    async with connect(BrokerSettings(bootstrap_servers=guarded.plain)) as broker:
        await broker.create_topics(Topics(federation).specs(settings.topics))
    for role, (reads, writes) in _table().items():
        if role not in roles:
            continue
        rights = [(_TOPIC, f"{federation}.{kind}", _READ) for kind in reads]
        rights += [(_TOPIC, f"{federation}.{kind}", _WRITE) for kind in writes]
        if role == "aggregator":
            rights += [(_GROUP, f"{federation}.aggregator", _READ)]
            rights += [(_TRANSACTIONAL_ID, f"{federation}.aggregator", _WRITE)]
        await guarded.allow(role, rights)
    return settings


@asynccontextmanager
async def _brokers(guarded: _Guarded) -> AsyncIterator[dict[str, Broker]]:
    yield {role: connect(guarded.as_user(role)) for role in (*_ROLES, _NOBODY)}


async def test_each_role_works_with_the_rights_of_the_table(guarded: _Guarded, federation: str, tmp_path: Path) -> None:
    settings = await _grant(guarded, federation)
    registry = settings.registry.model_copy(update={"url": Folder("file", tmp_path).url, "every": 1})
    settings = settings.model_copy(update={"registry": registry})
    task, stop, over = load_task(settings.task, settings.client), Shutdown(), Shutdown()
    shares = settings.model_copy(
        update={"client": settings.client.model_copy(update={"id": "s", "shard": 1, "share_local": True})}
    )
    seen: list[Event] = []
    view = FederationView(federation)

    async with _brokers(guarded) as brokers, Offload(2) as offload:

        async def run() -> list[object]:
            with ClientState("c", None) as state, ClientState("s", None) as other:
                done = await run_all(
                    run_aggregator(brokers["aggregator"], settings, lambda: initial_of(task, settings), offload, stop),
                    run_client(brokers["client"], settings, task, state, offload, stop),
                    run_evaluator(brokers["evaluator"], settings, task, offload, stop),
                    run_archiver(brokers["archiver"], settings, store_of(settings), offload, stop),
                    run_client(brokers[_SHARING], shares, load_task(shares.task, shares.client), other, offload, stop),
                )
            async with serving_of(brokers["inference"], settings, task) as serving:
                await until(lambda: serving.pool.newest == _VERSIONS)
            over.request()
            return done

        monitor, topics = brokers["monitor"], Topics(federation)
        (end, _, evaluated, archived, _), *_ = await run_all(
            run(), follow_events(monitor, topics, seen.append, over), follow(monitor, topics, view, over)
        )
    assert end.version == _VERSIONS
    assert evaluated.version == _VERSIONS
    assert archived[-1] == _VERSIONS
    kinds = {event.kind for event in seen}
    assert kinds >= {EventKind.CLIENT_JOINED, EventKind.UPDATE_SENT, EventKind.EVALUATION, EventKind.RUN_FINISHED}
    assert view.control.finished is not None
    # It may write there and read what it wrote; the other client can do neither, and needs neither.
    assert {event.data["trained_by"] for event in seen if event.data.get("trained_by")} == {"s"}


async def test_a_client_that_may_not_write_updates_is_told_so(guarded: _Guarded, federation: str) -> None:
    settings = await _grant(guarded, federation, ["aggregator", "evaluator"])
    await guarded.allow(
        "client", [(_TOPIC, f"{federation}.{kind}", _READ) for kind in ("updates", "models", "control")]
    )
    await guarded.allow("client", [(_TOPIC, f"{federation}.events", _WRITE)])
    task, stop = load_task(settings.task, settings.client), Shutdown()
    async with _brokers(guarded) as brokers, Offload(2) as offload:

        async def client() -> None:
            with ClientState("c", None) as state, pytest.raises(BrokerError, match=r"ACLs.*updates"):
                await run_client(brokers["client"], settings, task, state, offload, stop)
            stop.request()

        await run_all(
            client(),
            run_aggregator(brokers["aggregator"], settings, lambda: initial_of(task, settings), offload, stop),
        )


async def test_a_user_without_rights_is_told_both_possibilities(
    guarded: _Guarded, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = await _grant(guarded, federation, [])
    task, stop = load_task(settings.task, settings.client), Shutdown()
    async with _brokers(guarded) as brokers, Offload(2) as offload:
        nobody = brokers[_NOBODY]
        with pytest.raises(BrokerError, match=r"cannot be created: this user may not \(Create\)"):
            await run_aggregator(nobody, settings, lambda: initial_of(task, settings), offload, stop)

        async def until_told() -> None:
            await until(lambda: "waiting for" in caplog.text)
            stop.request()

        with ClientState("c", None) as state:
            await run_all(run_client(nobody, settings, task, state, offload, stop), until_told())
    assert "no aggregator has made that yet, or this user may not see it (Describe)" in caplog.text


async def test_a_user_without_rights_gets_no_list_and_another_status(
    guarded: _Guarded, federation: str, llmos: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _grant(guarded, federation, [])
    settings = guarded.as_user(_NOBODY)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", federation)
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", settings.bootstrap_servers or "")
    monkeypatch.setenv("LLMOS_BROKER__SECURITY_PROTOCOL", settings.security_protocol)
    monkeypatch.setenv("LLMOS_BROKER__SASL_USERNAME", _NOBODY)
    monkeypatch.setenv("LLMOS_BROKER__SASL_PASSWORD", f"{_NOBODY}-secret")
    for action in ("list", "repair"):
        done = await asyncio.to_thread(llmos, "topics", action)
        assert done.status == 5
        assert "has no topics" in done.error()
        assert "Describe" in done.error()
