"""Through TLS: requests and the result stream, with the certificate checked."""

from __future__ import annotations

import datetime
import ipaddress
import queue
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from websockets.sync.server import serve

from mep_sdk.http import Transport
from mep_sdk.result_stream import ResultListener
from mep_sdk.serialize import serialize_result
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import RelayUnreachable
from mep_wire.states import TaskState

WAIT_S = 10


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the path of a certificate for 127.0.0.1, which is its own authority, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def server_side(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"\x01")

    def log_message(self, *args):
        pass


@pytest.fixture
def web(server_side):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = server_side.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_requests(trusted, web):
    transport = Transport(ClientSettings(web, "secret"), retry_for_s=0.0)
    for _ in range(2):
        assert transport.post("/", bytes(1_000_000)) == b"\x01"


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(web):
    with pytest.raises(RelayUnreachable, match="certificate verify failed"):
        Transport(ClientSettings(web, "secret"), retry_for_s=60.0).post("/", {})


def test_the_result_stream(trusted, server_side):
    def results(connection):
        connection.recv()
        for number in range(50):
            result = api.StreamedResult(
                str(number), TaskState.SUCCESS, "", "", serialize_result("x" * (number * 10_000))
            )
            connection.send(msgspec.msgpack.encode(api.StreamBatch(cursor=number + 1, results=[result])))
        for _ in connection:
            pass

    found: queue.Queue[str] = queue.Queue()
    refused: queue.Queue[Exception] = queue.Queue()
    with serve(results, "127.0.0.1", 0, ssl=server_side, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = ClientSettings(f"https://127.0.0.1:{server.socket.getsockname()[1]}", "secret")
        listener = ResultListener(
            settings, "g", lambda each: found.put(each[0].task_id), lambda _, error: refused.put(error)
        )
        listener.group_known()
        listener.start()
        assert [found.get(timeout=WAIT_S) for _ in range(50)] == [str(number) for number in range(50)]
        assert refused.empty()
        listener.stop()
        listener.join(WAIT_S)
        server.shutdown()
