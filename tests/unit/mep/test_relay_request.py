"""An address that is no relay's: the text says what it is, and what to do. By real servers."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mep.cli import relay_request
from mep.cli.endpoint_dirs import write_new
from mep.cli.relay_answer import AnswerKind, RelayAnswer
from mep.cli.relay_request import RelayCall
from tests.support.certificates import Authority


@contextlib.contextmanager
def server(status: int, body: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Yield the port of a server that answers all requests so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Print nothing of a failed handshake."""

    made = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def outcome(url: str) -> RelayAnswer:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        return relay_request._outcome(RelayCall(url, "POST", "/v3/endpoints", "t", {}), theirs)[0]


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_request, "ATTEMPTS", 1)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (501, b"<html>not implemented", "HTTP status 501, and the answer is no relay's"),
        (404, b"", "HTTP status 404, and the answer is no relay's"),
        (200, b"<html>welcome", "the answer is no registration ("),
        (200, b"{}", "the answer is no registration ("),
    ],
)
def test_something_else_answers_there(status: int, body: bytes, said: str) -> None:
    with server(status, body) as port:
        answer = outcome(f"http://127.0.0.1:{port}")
    assert answer.kind is AnswerKind.MALFORMED
    assert answer.text.startswith(said) and answer.text.endswith("is this address a MEP relay's? Check relay_url")


def test_a_proxy_whose_relay_is_down() -> None:
    with server(502, b"<html>bad gateway") as port:
        answer = outcome(f"http://127.0.0.1:{port}")
    assert (answer.kind, "does the relay run?" in answer.text) == (AnswerKind.REFUSED, True)


def test_https_is_asked_of_a_plain_port() -> None:
    with server(200, b"") as port:
        answer = outcome(f"https://127.0.0.1:{port}")
    assert answer.kind is AnswerKind.UNREACHABLE
    assert answer.text.startswith("it speaks plain http on this port, not https; ")


def test_a_plain_request_to_an_https_port(tmp_path: Path) -> None:
    with server(200, b"", Authority(tmp_path).server("127.0.0.1")) as port:
        answer = outcome(f"http://127.0.0.1:{port}")
        assert (answer.kind, "speak https?" in answer.text) == (AnswerKind.UNREACHABLE, True), answer.text
        foreign = outcome(f"https://127.0.0.1:{port}")
    assert "its certificate is not accepted: " in foreign.text and "SSL_CERT_FILE" in foreign.text


@pytest.mark.root
def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(tmp_path)], check=True, timeout=30)
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_new(tmp_path / "registration.json", b"x" * 100_000, mode=0o600)
        assert caught.value.filename == str(tmp_path / "registration.json")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=30)
