"""Requests, retries and errors, against a server that answers as it is told."""

from __future__ import annotations

import logging
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.http import Transport
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import EndpointNotFound, RelayUnavailable, RelayUnreachable, TokenUnknown


class Script(ThreadingHTTPServer):
    """Gives the answers in `answers` one after another, the last for ever; remembers each request."""

    daemon_threads = True

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked, self.connections = list(answers), [], 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request, client_address):
        self.connections += 1
        super().process_request(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Script

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        answer = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if answer == "hang up":
            self.close_connection = True
            return
        status, headers, text = answer
        self.send_response(status)
        for name, value in {"Content-Length": len(text), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    started = []

    def start(*answers):
        server = Script(*answers)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def asking(url, retry_for_s=5.0):
    return Transport(ClientSettings(url, "secret"), retry_for_s=retry_for_s)


def refusal(error, packed=True):
    body = api.ErrorAnswer(
        reason=error.text, code=error.code, http_status_code=error.http_status, correlation_id=error.correlation_id
    )
    if packed:
        return error.http_status, {"Content-Type": api.MSGPACK}, msgspec.msgpack.encode(body)
    return error.http_status, {"Content-Type": api.JSON}, msgspec.json.encode(body)


OK = (200, {"Content-Type": api.MSGPACK}, b"\x01")


def test_one_connection_serves_many_requests(serve):
    server = serve(OK)
    transport = asking(server.url + "/base")
    for _ in range(3):
        assert transport.post("/v3/x", {"a": 1}) == b"\x01"
    assert server.connections == 1
    method, path, headers, body = server.asked[0]
    assert (method, path, msgspec.msgpack.decode(body)) == ("POST", "/base/v3/x", {"a": 1})
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == api.MSGPACK


@pytest.mark.parametrize("packed", [True, False])
def test_errors_arrive_as_their_own_class(serve, packed):
    told = EndpointNotFound(endpoint_id="e")
    server = serve(refusal(told, packed))
    with pytest.raises(EndpointNotFound) as caught:
        asking(server.url).get("/")
    assert caught.value.text == told.text
    assert caught.value.correlation_id == told.correlation_id
    assert len(server.asked) == 1


def test_an_unavailable_relay_is_asked_again(serve):
    server = serve(refusal(RelayUnavailable(reason="busy")), OK)
    assert asking(server.url).get("/") == b"\x01"


@pytest.mark.parametrize(
    "value",
    ["9" * 400, "9" * 5000, "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2024 99:99:99 +999999999999", "soon", "-5"],
)
def test_no_retry_after_is_too_much(serve, value):
    status, headers, body = refusal(RelayUnavailable(reason="busy"))
    server = serve((status, {**headers, "Retry-After": value}, body))
    with pytest.raises(RelayUnavailable):
        asking(server.url, retry_for_s=0.2).get("/x")


def test_retry_after_is_honoured_up_to_the_deadline(serve):
    status, headers, body = refusal(RelayUnavailable(reason="busy"))
    server = serve((status, {**headers, "Retry-After": "60"}, body), OK)
    with pytest.raises(RelayUnavailable):
        asking(server.url, retry_for_s=1.0).get("/")
    assert len(server.asked) == 1


def test_a_broken_connection_is_tried_again(serve, caplog):
    server = serve("hang up", "hang up", OK)
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        assert asking(server.url).get("/") == b"\x01"
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"relay {server.url} unreachable",
        f"relay {server.url} reachable again",
    ]


def test_a_kept_connection_that_went_away_costs_no_pause(serve, caplog):
    server = serve(OK, "hang up", OK)
    transport = asking(server.url, retry_for_s=0.0)
    transport.get("/")
    assert transport.get("/") == b"\x01"
    assert not caplog.records


def test_an_unreachable_relay_is_said_once_and_then_raised(caplog):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with caplog.at_level(logging.WARNING, "mep_sdk"), pytest.raises(RelayUnreachable, match="refused") as caught:
            asking(url, retry_for_s=0.8).get("/")
    assert [record.message for record in caplog.records] == [
        f"relay {url} unreachable (Connection refused), retrying (1)"
    ]
    assert url in caught.value.text


def test_redirects_are_not_followed(serve):
    elsewhere = serve(OK)
    server = serve((302, {"Location": elsewhere.url}, b""))
    with pytest.raises(RelayAnswerInvalid, match="302"):
        asking(server.url).get("/")
    assert elsewhere.asked == []


def test_something_else_at_the_address_is_named(serve):
    server = serve((404, {"Content-Type": "text/html"}, b"<html>no such page</html>"))
    with pytest.raises(RelayAnswerInvalid, match="404"):
        asking(server.url).get("/")


def test_a_certificate_that_does_not_fit_is_not_retried(serve):
    server = serve(OK)
    with pytest.raises(RelayUnreachable):
        asking(server.url.replace("http", "https"), retry_for_s=0.2).get("/")


def test_an_unknown_token(serve):
    server = serve(refusal(TokenUnknown()))
    with pytest.raises(TokenUnknown):
        asking(server.url).get("/")


def test_an_answer_before_the_body_was_read_counts():
    status, headers, body = refusal(TokenUnknown())
    head = f"HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Type: {headers['Content-Type']}\r\n"
    answer = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def refuse(listener):
        with listener.accept()[0] as connection:
            connection.recv(1024)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        with pytest.raises(TokenUnknown):
            asking(f"http://127.0.0.1:{listener.getsockname()[1]}", retry_for_s=0.0).post("/", bytes(20 << 20))
        thread.join()


def test_a_forked_child_uses_its_own_connection(serve):
    server = serve(OK)
    transport = asking(server.url)
    transport.get("/")
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if transport.get("/") == b"\x01" else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    transport.get("/")
    assert server.connections == 2


def test_a_proxy_is_used_for_other_hosts(serve, monkeypatch):
    seen = []

    def proxy(listener):
        with listener.accept()[0] as connection:
            seen.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=proxy, args=(listener,))
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://me:pw@127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(RelayUnreachable, match="403"):
            asking("https://relay.invalid", retry_for_s=0.0).get("/")
        thread.join()
    assert seen[0].startswith(b"CONNECT relay.invalid:443 HTTP/1.")
    assert b"Proxy-Authorization: Basic bWU6cHc=" in seen[0]
    assert b"secret" not in seen[0]


def test_a_relay_that_cannot_is_warned_of_once_and_its_error_is_told(serve, monkeypatch, caplog):
    monkeypatch.setattr("mep_sdk.http._SAY_AFTER_S", 0.0)
    full = refusal(RelayUnavailable(reason="its store cannot write"))
    transport = asking(serve(full, full, OK, OK).url)
    told = []
    with caplog.at_level(logging.WARNING, "mep_sdk"):
        assert transport.post("/", {}, retrying=told.append) == b"\x01"
        assert transport.post("/", {}, retrying=told.append) == b"\x01"
    assert [each.code for each in told] == ["RELAY_UNAVAILABLE"] * 2
    first, second = [record.getMessage() for record in caplog.records]
    assert "asked again later" in first and "its store cannot write" in first
    assert "has taken the request" in second
