"""The endpoint's figures for Prometheus, served on loopback from a thread of the manager.

No figure names a person or an account, since every account on the host may read them. Labels have few values each: a
code that the catalogue doesn't have, which a user endpoint can invent, counts as OTHER. The server answers one client
at a time and gives each CLIENT_S seconds, so that slow ones delay only each other. Imported only where the site wants
figures (`metrics_port`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from mep.boundary.errors import StartStage
from mep.boundary.log import Log
from mep_wire.errors import by_code

CLIENT_S = 5.0
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds in seconds. A start takes about half a second, and is given up after one or two minutes."""
_OTHER = "OTHER"
_CODES = frozenset(by_code()) | {"", "IDLE", "STOPPED"}
_STAGES = frozenset(stage.name for stage in StartStage) | {""}
_CONTENT = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Present:
    """The values of this moment. The manager's loop writes them, and the server's thread reads them."""

    link_up: bool = False
    clock_skew_s: float = 0.0
    running: int = 0
    queued: int = 0
    oldest_queued_s: float = 0.0
    outstanding: int = 0
    outbox: int = 0


class Figures:
    """Counters and histograms of one manager, and `present`."""

    def __init__(self) -> None:
        self.present = Present()
        self._registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        kept: Any = {"namespace": "mep", "subsystem": "endpoint", "registry": self._registry}
        self._starts = Counter("starts", "Start requests that were answered.", ("outcome", "code", "stage"), **kept)
        self._ends = Counter("user_endpoint_ends", "User endpoints that have ended.", ("code",), **kept)
        self._losses = Counter("link_losses", "Times that the relay's link was lost.", **kept)
        self._queue = Histogram(
            "start_queue_seconds", "Time of starts in the manager's queue.", buckets=BUCKETS, **kept
        )
        self._mapping = Histogram(
            "start_mapping_seconds", "Time from the queue until a keeper works: verifying and mapping.",
            buckets=BUCKETS, **kept,
        )  # fmt: skip
        self._whole = Histogram(
            "start_seconds", "Time from the request until its answer.", ("outcome",), buckets=BUCKETS, **kept
        )
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the values of this moment, as prometheus_client's registry asks for them."""
        now = self.present
        yield _gauge("link_up", "Whether the relay's link is up.", float(now.link_up))
        yield _gauge("clock_skew_seconds", "How far this host's clock is ahead of the relay's.", now.clock_skew_s)
        yield _gauge("user_endpoints", "User endpoints that run here.", now.running)
        yield _gauge("starts_queued", "Starts that wait in the manager's queue.", now.queued)
        yield _gauge("starts_queued_oldest_seconds", "Age of the oldest start in the queue.", now.oldest_queued_s)
        yield _gauge("starts_outstanding", "Starts that the monitor has not answered.", now.outstanding)
        yield _gauge("relay_messages_waiting", "Messages to the relay that it has not confirmed.", now.outbox)

    def started(self, outcome: str, code: str, stage: str, seconds: float) -> None:
        """Count an answered start that took so long since its request came."""
        known = (code if code in _CODES else _OTHER, stage if stage in _STAGES else _OTHER)
        self._starts.labels(outcome, *known).inc()
        self._whole.labels(outcome).observe(seconds)

    def sent(self, seconds: float) -> None:
        """Note how long a start was queued."""
        self._queue.observe(seconds)

    def mapped(self, seconds: float) -> None:
        """Note how long verifying and mapping took."""
        self._mapping.observe(seconds)

    def ended(self, code: str) -> None:
        """Count the end of a user endpoint."""
        self._ends.labels(code if code in _CODES else _OTHER).inc()

    def link_lost(self) -> None:
        """Count a loss of the relay's link."""
        self._losses.inc()

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mep_endpoint_{name}", text, value=value)


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics, and nothing else."""

    server: _Server
    timeout = CLIENT_S

    def do_GET(self) -> None:
        """Send the figures. The base class finds this by its name."""
        found = self.path.partition("?")[0] == "/metrics"
        body = self.server.figures.text() if found else b"see /metrics\n"
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", _CONTENT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: any account can ask any number of times."""


class _Server(HTTPServer):
    figures: Figures

    def __init__(self, listener: socket.socket, figures: Figures) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.figures = listener, figures

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve one client, for CLIENT_S in all: it may send or read a byte at a time."""
        timer = threading.Timer(CLIENT_S, _hang_up, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request(request, client_address)
        finally:
            timer.cancel()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that leaves."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def serve(listener: socket.socket, figures: Figures) -> None:
    """Serve `figures` on a listening socket, from a thread of its own, for as long as the process lives."""
    server = _Server(listener, figures)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def listen(port: int, log: Log) -> socket.socket | None:
    """Return a socket that listens on this port of loopback; None, and an error in the log, if it is taken."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        made.listen(8)
    except OSError as error:
        made.close()
        log.error("no figures are served", metrics_port=port, reason=error.strerror)
        return None
    return made
