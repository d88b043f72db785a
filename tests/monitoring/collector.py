"""A collector of spans on the loopback, as OTLP over HTTP has it."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from llmos_stream.config import TracingSettings


class Collector(ThreadingHTTPServer):
    """Answers every request with `status`, and keeps the spans that come, each with the service it is of."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.asked = 0
        self.spans: list[tuple[str, Span]] = []

    @property
    def names(self) -> list[str]:
        return [span.name for _, span in self.spans]

    @property
    def settings(self) -> TracingSettings:
        return TracingSettings(endpoint=f"http://127.0.0.1:{self.server_address[1]}/v1/traces")


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.asked += 1
        for of in ExportTraceServiceRequest.FromString(body).resource_spans:
            facts = {item.key: item.value.string_value for item in of.resource.attributes}
            found = [(facts["service.name"], span) for scope in of.scope_spans for span in scope.spans]
            self.server.spans += found
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def collector(status: int = 200) -> Iterator[Collector]:
    """One that answers meanwhile."""
    with Collector(status) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
