"""Through real proxies: requests and the result stream, with TLS to the proxy and within it, and the accepted CAs."""

from __future__ import annotations

import base64
import contextlib
import queue
import socket
import ssl
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from websockets.sync.server import ServerConnection, serve

from mep_sdk.connection import proxy_for
from mep_sdk.errors import ProxyUnsupported
from mep_sdk.http import Transport
from mep_sdk.result_stream import ResultListener, ResultStream
from mep_sdk.serialize import serialize_result
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import MepError, RelayUnreachable
from mep_wire.states import TaskState
from tests.support.certificates import Authority
from tests.support.proxies import HttpProxy, SocksProxy

RELAY = "relay.test"
TOKEN = "a-person's-token"
WAIT_S = 20
MANY = 200
VARIABLES = [
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy", "socks_proxy"),
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"\x01")

    def log_message(self, *args: object) -> None:
        pass


def results(connection: ServerConnection) -> None:
    connection.recv()
    for number in range(MANY):
        payload = serialize_result("x" * (number % 20 * 10_000))
        result = api.StreamedResult(str(number), TaskState.SUCCESS, "", "", payload)
        connection.send(msgspec.msgpack.encode(api.StreamBatch(cursor=number + 1, results=[result])))
    with contextlib.suppress(Exception):
        for _ in connection:
            pass


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="module")
def web(authority: Authority) -> Iterator[int]:
    """A server of requests behind TLS, as relay.test; its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = authority.server(RELAY, "127.0.0.1")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def stream(authority: Authority) -> Iterator[int]:
    """A server of result streams behind TLS, as relay.test; its port."""
    with serve(results, "127.0.0.1", 0, ssl=authority.server(RELAY), compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]
        server.shutdown()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))


def at(port: int) -> ClientSettings:
    return ClientSettings(f"https://{RELAY}:{port}", TOKEN)


def asks(settings: ClientSettings) -> None:
    transport = Transport(settings, retry_for_s=0.0)
    for size in (10, 3_000_000):
        assert transport.post("/v3/x", bytes(size)) == b"\x01"


def streams(settings: ClientSettings) -> None:
    found: queue.Queue[object] = queue.Queue()
    listener = ResultListener(settings, "g", lambda each: found.put(each[0].task_id), lambda _, error: found.put(error))
    listener.group_known()
    listener.start()
    try:
        assert [found.get(timeout=WAIT_S) for _ in range(MANY)] == [str(number) for number in range(MANY)]
    finally:
        listener.stop()
        listener.join(WAIT_S)


USES = {"requests": asks, "the result stream": streams}


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest, web: int, stream: int) -> tuple[Callable[[ClientSettings], None], int]:
    return USES[request.param], web if request.param == "requests" else stream


def test_an_https_proxy_is_spoken_to_through_tls(use, authority, monkeypatch) -> None:
    call, port = use
    with HttpProxy({RELAY: port}, tls=authority.server("127.0.0.1")) as proxy:
        monkeypatch.setenv("https_proxy", f"https://me:p%40ss@127.0.0.1:{proxy.port}")
        call(at(port))
    assert set(proxy.first_bytes) == {b"\x16"}, "a TLS handshake, and no CONNECT in clear text"
    assert proxy.heads[0].startswith(f"CONNECT {RELAY}:{port} HTTP/1.".encode())
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:p@ss") in proxy.heads[0]
    assert TOKEN.encode() not in b"".join(proxy.heads)


def test_an_http_proxy_of_the_same_environment_gets_clear_text(use, monkeypatch) -> None:
    call, port = use
    with HttpProxy({RELAY: port}) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        call(at(port))
    assert set(proxy.first_bytes) == {b"C"}
    assert TOKEN.encode() not in b"".join(proxy.heads)


def test_an_https_proxy_with_a_certificate_of_another_authority_gets_nothing(web, other, monkeypatch) -> None:
    with HttpProxy({RELAY: web}, tls=other.server("127.0.0.1")) as proxy:
        monkeypatch.setenv("https_proxy", f"https://me:secret@127.0.0.1:{proxy.port}")
        with pytest.raises(RelayUnreachable, match="certificate verify failed"):
            Transport(at(web), retry_for_s=60.0).post("/", {})
        with pytest.raises(ssl.SSLCertVerificationError):
            ResultStream(at(web))
    assert proxy.heads == []


@pytest.mark.parametrize("variable", ["https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(("scheme", "asked"), [("socks5h", RELAY), ("socks4a", RELAY), ("SOCKS5H", RELAY)])
def test_a_socks_proxy_that_resolves_names(use, scheme, asked, variable, monkeypatch) -> None:
    call, port = use
    with SocksProxy({RELAY: port}) as proxy:
        monkeypatch.setenv(variable, f"{scheme}://127.0.0.1:{proxy.port}")
        call(at(port))
    assert set(proxy.targets) == {asked}
    assert set(proxy.first_bytes) == {b"\x05" if "5" in scheme else b"\x04"}


def test_a_socks_proxy_with_a_password(use, monkeypatch) -> None:
    call, port = use
    with SocksProxy({RELAY: port}, credentials=("me", "p@ss")) as proxy:
        monkeypatch.setenv("all_proxy", f"socks5h://me:p%40ss@127.0.0.1:{proxy.port}")
        call(at(port))
    assert set(proxy.targets) == {RELAY}


def test_names_are_resolved_here_for_the_schemes_that_say_so(web, authority, monkeypatch) -> None:
    real = socket.getaddrinfo

    def resolve(host, *rest, **options):
        return real("127.0.0.1" if host == RELAY else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "gethostbyname", lambda host: resolve(host, 0)[0][4][0])
    for scheme in ("socks5", "socks4"):
        with SocksProxy({"127.0.0.1": web}) as proxy:
            monkeypatch.setenv("https_proxy", f"{scheme}://127.0.0.1:{proxy.port}")
            asks(at(web))
        assert set(proxy.targets) == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("socks5h://me:secret@127.0.0.1:1", "pip install 'mep-sdk\\[socks\\]'"),
        ("ftp://me:secret@127.0.0.1:1", "ftp://127.0.0.1:1.*none of http, https, socks4"),
        ("http://me:secret@:1", "names no host"),
        ("http://me:secret@127.0.0.1:port", "port is not a number"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_never_taken_for_another(address, what, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("https_proxy", address)
    for use in (lambda: Transport(at(1), retry_for_s=60.0).post("/", {}), lambda: ResultStream(at(1))):
        with pytest.raises(MepError, match=what) as caught:
            use()
        assert caught.value.code == "PROXY_UNSUPPORTED"
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("exempt", ["relay.test", ".test", "*", "other, relay.test"])
def test_no_proxy_names_hosts_that_are_reached_directly(exempt, web, monkeypatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", _resolver(socket.getaddrinfo))
    monkeypatch.setenv("no_proxy", exempt)
    for address in ("https://127.0.0.1:1", "socks5h://127.0.0.1:1", "ftp://127.0.0.1:1"):
        monkeypatch.setenv("https_proxy", address)
        asks(at(web))


def _resolver(real):
    return lambda host, *rest, **options: real("127.0.0.1" if host == RELAY else host, *rest, **options)


@pytest.mark.parametrize("exempt", ["127.0.0.0/8", "10.0.0.0/8,127.0.0.2"])
def test_no_proxy_may_name_networks(exempt, monkeypatch) -> None:
    from mep_sdk.connection import proxy_for

    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    assert str(proxy_for("https://127.0.0.2")) == "http://proxy.test:3128"
    monkeypatch.setenv("no_proxy", exempt)
    assert proxy_for("https://127.0.0.2") is None
    assert proxy_for("https://192.0.2.1") is not None


BUNDLES = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]


def local(port: int) -> ClientSettings:
    return ClientSettings(f"https://127.0.0.1:{port}", TOKEN)


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_vouches_for_the_relay(variable, web, authority, monkeypatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv(variable, str(authority.path))
    asks(local(web))


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_of_another_authority_is_refused_at_once(variable, web, other, monkeypatch) -> None:
    monkeypatch.setenv(variable, str(other.path))
    with pytest.raises(RelayUnreachable, match="certificate verify failed"):
        Transport(local(web), retry_for_s=60.0).post("/", {})
    with pytest.raises(ssl.SSLCertVerificationError):
        ResultStream(local(web))


@pytest.mark.parametrize("variable", BUNDLES)
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_cannot_be_read_is_named(variable, content, web, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(variable, str(path))
    for use in (lambda: Transport(local(web), retry_for_s=60.0).post("/", {}), lambda: ResultStream(local(web))):
        with pytest.raises(MepError, match=f"{variable}.*bundle.pem") as caught:
            use()
        assert caught.value.code == "CA_BUNDLE_UNUSABLE"


@pytest.mark.parametrize(
    "address",
    [
        "http://alice:s3cret#x@proxy.test:80",
        "http://alice:s3cret?x@proxy.test:80",
        "http://alice:s3cret/x@proxy.test:80",
        "http://alice:s3cret",
        "alice:s3cret@proxy.test:port",
        "http://alice:s3cret@[proxy.test",
        "http://alice:s3cret@proxy\uff03.test:80",
        "http://alice:s3cret@proxy.test:99999",
        "ftp://alice:s3cret@proxy.test",
        "http://alice:s3cret@",
    ],
)
def test_an_address_that_is_no_proxys_shows_no_password(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(ProxyUnsupported) as refused:
        proxy_for(f"https://{RELAY}")
    shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value.fields)
    assert "s3cret" not in shown, shown
    assert ("%23" in shown) == ("x@" in address)


def test_proxies_show_no_password() -> None:
    from mep_sdk.connection import Proxy as Known

    assert "secret" not in f"{Known('http', 'h', 1, 'me', 'secret')!r} {Known('http', 'h', 1, 'me', 'secret')}"
