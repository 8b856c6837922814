"""Registering over https: the token is sent only to a relay with an accepted certificate."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from tests.support.cli import Cli, open_directory

KIND = ["--multi-user"] if os.geteuid() == 0 else []


def certificate(directory: Path, address: str) -> Path:
    """Write a certificate for `address` that is its own authority; return the file."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test relay")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    path = directory / f"{address}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.with_suffix(".key").write_bytes(secret)
    return path


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.tokens.append(self.headers["authorization"])  # type: ignore[attr-defined]  # TlsRelay's
        answer = json.dumps({
            "endpoint_id": body["endpoint_uuid"], "link_address": "tcp://127.0.0.1:9", "link_public_key": "11" * 32,
            "signing_public_key": "22" * 32, "owner": [], "warnings": ["a word from the relay"],
        }).encode()  # fmt: skip
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


class TlsRelay(ThreadingHTTPServer):
    """The relay's side of a registration, over TLS."""

    def __init__(self, pem: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, pem.with_suffix(".key"))
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        pass


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as made:
        yield made


def serve(pem: Path) -> TlsRelay:
    server = TlsRelay(pem)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


def end(server: TlsRelay) -> None:
    server.shutdown()
    server.server_close()


def test_an_accepted_certificate(directory: Path) -> None:
    pem = certificate(directory, "127.0.0.1")
    server = serve(pem)
    mep = Cli(directory, variables={"MEP_TOKEN": "token-1", "SSL_CERT_FILE": str(pem)})
    said = mep("configure", "site", *KIND, "--relay", server.url)
    end(server)
    assert server.tokens == ["Bearer token-1"]
    assert "a word from the relay" in said.stderr


@pytest.mark.parametrize("trusted", [False, True], ids=["unknown authority", "another host's"])
def test_a_certificate_that_is_not_accepted(directory: Path, trusted: bool) -> None:
    pem = certificate(directory, "127.0.0.2" if trusted else "127.0.0.1")
    server = serve(pem)
    variables = {"MEP_TOKEN": "token-1", **({"SSL_CERT_FILE": str(pem)} if trusted else {})}
    said = Cli(directory, variables=variables)("configure", "site", *KIND, "--relay", server.url, expect=5).stderr
    end(server)
    assert "its certificate is not accepted" in said
    assert "trying again" not in said
    assert server.tokens == []


def test_a_relay_that_speaks_no_tls(directory: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    mep = Cli(directory, variables={"MEP_TOKEN": "token-1"})
    said = mep("configure", "site", *KIND, "--relay", f"https://127.0.0.1:{server.server_port}", expect=5).stderr
    server.shutdown()
    server.server_close()
    assert "cannot be reached" in said
