"""An OTLP/HTTP collector of the tests: a thread of its own, decodes with opentelemetry-proto."""

from __future__ import annotations

import gzip
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def values(message: Any) -> dict[str, Any]:
    """Attributes of a span, an event or a resource."""
    return {pair.key: _value(pair.value) for pair in message.attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


class Collector:
    """Keeps every span it is sent. ``answers``: statuses to give first, then 200."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.scopes: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answers: list[int] = []
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                status = owner.take(self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        with self._lock:
            self.headers.append(headers)
            if path != "/v1/traces":
                return 404
            if self.answers:
                status = self.answers.pop(0)
                if status != 200:
                    return status
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.resources.append(values(resource.resource))
                for scope in resource.scope_spans:
                    self.scopes.append(scope.scope.name)
                    self.spans += scope.spans
            return 200

    def wait(self, spans: int, seconds: float = 10.0) -> list[Any]:
        """Until so many spans came; fails where they do not."""
        end = time.monotonic() + seconds
        while len(self.spans) < spans:
            assert time.monotonic() < end, f"{len(self.spans)} of {spans} spans came"
            time.sleep(0.01)
        return self.spans

    def named(self, name: str) -> Any:
        """The one span of that name."""
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, f"{name}: {[span.name for span in self.spans]}"
        return found[0]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
