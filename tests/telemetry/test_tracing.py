"""Spans: the header between processes, whatever it holds; the collector, whatever it answers; and nothing when off."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from llmos_stream.config import TracingSettings, load
from llmos_stream.errors import ConfigError
from llmos_stream.telemetry.tracing import (
    HEADER,
    TraceParent,
    follow,
    span,
    trace_headers,
    traced,
    traceparent_of,
    tracing,
)
from tests.monitoring.collector import collector
from tests.telemetry.kept import FACTS, ON, traced_to

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"  # the example of W3C Trace Context
PARENT = TraceParent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, sampled=True)


@pytest.fixture(autouse=True)
def _ends() -> Iterator[None]:
    """What is still trying to send ends with its test: it uses `random`, which others' strategies may not see move."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(("tracing-close", "OtelBatch")):
            thread.join(30)
            assert not thread.is_alive()


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_header_survives_its_way(trace_id: int, span_id: int, sampled: bool) -> None:
    parent = TraceParent(trace_id, span_id, sampled)
    assert TraceParent.parse(parent.dump()) == parent
    assert len(parent.dump()) == 55


def test_the_header_is_that_of_w3c() -> None:
    assert PARENT.dump() == GOOD
    assert TraceParent.parse(GOOD) == PARENT
    assert TraceParent.parse(GOOD[:-2] + b"00") == PARENT._replace(sampled=False)
    assert TraceParent.parse(b"cc" + GOOD[2:] + b"-what a later version adds") == PARENT


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        GOOD[:-1],
        GOOD.upper(),
        GOOD + b"-more",
        b"ff" + GOOD[2:],
        b"00-" + b"0" * 32 + GOOD[35:],
        GOOD[:36] + b"0" * 16 + GOOD[52:],
        b" " + GOOD,
        GOOD + b"\n",
        b"cc" + GOOD[2:] + b"-" + b"x" * 1000,
        None,
        GOOD.decode(),
        5,
    ],
)
def test_what_is_no_header_is_as_good_as_none(value: object) -> None:
    assert TraceParent.parse(value) is None


@given(st.binary(max_size=200))
def test_no_bytes_are_too_strange(value: bytes) -> None:
    assert TraceParent.parse(value) is None or len(value) >= 55


def test_it_is_found_among_others_and_not_looked_for_without_end() -> None:
    assert traceparent_of([("a", b"1"), (HEADER, GOOD)]) == PARENT
    assert traceparent_of([("a", None), ("Traceparent", GOOD)]) is None
    assert traceparent_of([("a", b"")] * 1000 + [(HEADER, GOOD)]) is None


def test_nothing_happens_without_an_endpoint() -> None:
    with traced(TracingSettings(), FACTS):
        assert not tracing()
        with span("a", {"version": 1}) as one, span("b") as other:
            assert one is other  # nothing is made
            assert one.parent is None
            assert trace_headers() == ()


def test_the_package_is_not_needed_where_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("opentelemetry", "llmos_stream.telemetry.otlp"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with traced(TracingSettings(), FACTS), span("a"):
        pass
    with pytest.raises(ConfigError, match=r"pip install -e '.\[tracing\]'"), traced(ON, FACTS):
        pass


def test_spans_within_spans_and_across_processes() -> None:
    kept = InMemorySpanExporter()
    with traced_to(kept):
        with span("outer") as outer:
            with span("inner", {"version": 7, "codec": "int8"}) as inner:
                inner.set_attributes({"bytes": 5})
                (header,) = trace_headers()
            assert outer.parent is not None
        came = traceparent_of([header])
        assert came == inner.parent
        with follow("elsewhere", came, {}), span("in it"):
            pass
        with follow("of nothing", None, {}):
            assert trace_headers() == ()
        with span("joined", parent=came, links=[PARENT, outer.parent]):
            pass
    spans = {one.name: one for one in kept.get_finished_spans()}
    assert set(spans) == {"outer", "inner", "elsewhere", "in it", "joined"}
    assert len({one.context.trace_id for one in spans.values()}) == 1
    parents = {name: one.parent and one.parent.span_id for name, one in spans.items()}
    ids = {name: one.context.span_id for name, one in spans.items()}
    assert parents == {
        "outer": None,
        "inner": ids["outer"],
        "elsewhere": ids["inner"],
        "in it": ids["elsewhere"],
        "joined": ids["inner"],
    }
    assert spans["inner"].attributes == {"llmos.version": 7, "llmos.codec": "int8", "llmos.bytes": 5}
    assert [link.context.span_id for link in spans["joined"].links] == [PARENT.span_id, ids["outer"]]
    resource = spans["outer"].resource.attributes
    assert (resource["service.name"], resource["service.namespace"]) == ("llmos-client", "f")


def test_an_error_travels_on_and_its_message_stays_out() -> None:
    kept = InMemorySpanExporter()
    with traced_to(kept), pytest.raises(ValueError, match="a secret"), span("failing"):
        raise ValueError("a secret")
    (failed,) = kept.get_finished_spans()
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ValueError")
    assert "a secret" not in failed.to_json()


def test_a_part_of_the_updates_is_traced_and_the_first_decides_for_all() -> None:
    kept = InMemorySpanExporter()
    with traced_to(kept, fraction=0.0):
        with span("root") as root:
            assert root.parent is not None
            assert not root.parent.sampled
        with span("of one that is kept", parent=PARENT):
            pass
        with span("of one that is not", parent=PARENT._replace(sampled=False)):
            pass
    assert [one.name for one in kept.get_finished_spans()] == ["of one that is kept"]


def test_a_collector_gets_the_spans_over_http() -> None:
    with collector() as collected:
        with traced(collected.settings, FACTS), span("a"), span("b"):
            pass
        assert collected.names == ["b", "a"]  # sent at the latest when the process ends


@pytest.mark.parametrize("status", [400, 503])
def test_a_collector_that_says_no_disturbs_nobody(status: int, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    with collector(status) as collected, caplog.at_level(logging.WARNING):
        with traced(collected.settings, FACTS):
            for _ in range(3):
                with span("a"):
                    pass
        assert collected.asked
    assert time.monotonic() - begun < 15
    assert "see tracing.endpoint" in caplog.text
    assert {record.name for record in caplog.records} == {"llmos_stream.telemetry.otlp"}


def test_a_collector_that_is_gone_or_silent_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as silent, caplog.at_level(logging.WARNING):
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        settings = TracingSettings(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        with traced(settings, FACTS), span("a"):
            pass
        assert time.monotonic() - begun < 10
    assert "the last spans were not sent" in caplog.text


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://collector/", "http://", "http://user:secret@collector/"])
def test_an_endpoint_that_makes_no_sense_is_told_without_its_password(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="tracing") as told:
        load({"tracing": {"endpoint": endpoint}})
    assert "secret" not in str(told.value)
