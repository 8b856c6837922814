"""The examples of docs/operations.md for nginx and Caddy are valid, and a real relay works behind them.

The examples run as they stand, but for addresses, ports and the certificate.
"""

from __future__ import annotations

import re
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from websockets.sync.client import connect

from mep_wire import api
from tests.support.certificates import Authority
from tests.support.relay import RelayProcess
from tests.support.waiting import until

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
NAME = "relay.example.edu"
GROUP = "0192f0c4-0000-7000-8000-000000000001"
NGINX, CADDY = "/usr/sbin/nginx", "/usr/bin/caddy"

pytestmark = pytest.mark.root  # which has the packages


def example(language: str, first: str) -> str:
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if text.startswith(first))
    return str(found)


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


class Place:
    """A relay that trusts a proxy on loopback, a certificate, and a port for the proxy."""

    def __init__(self, directory: Path, relay: RelayProcess) -> None:
        self.directory, self.relay = directory, relay
        self.backend = relay.url.removeprefix("http://")
        self.token = relay.add_user("alice@example.edu")
        authority = Authority(directory)
        authority.server("127.0.0.1")
        (self.certificate,) = directory.glob("authority-*.pem")
        self.trust = ssl.create_default_context(cafile=authority.path)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> int:
        """Return the status of a request over the proxy."""
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}",
            data=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urllib.request.urlopen(request, timeout=60, context=self.trust) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def stream(self) -> None:
        """Open a result stream over the proxy, subscribe, and get the relay's first frame."""
        url, headers = f"wss://127.0.0.1:{self.port}/v3/stream", {"Authorization": f"Bearer {self.token}"}
        with connect(url, ssl=self.trust, additional_headers=headers) as opened:
            opened.send(msgspec.msgpack.encode(api.Subscribe(task_group_id=GROUP, cursor=0)))
            assert opened.recv(60)

    def works(self) -> None:
        """Check that people's requests and streams pass, and that metrics don't."""
        until("the proxy", self._listens, 60)
        assert self.ask("/readyz") == 200
        assert self.ask("/metrics") == 404
        large = b"{" + b" " * (20 << 20) + b"}"  # the relay reads it all, and says what is missing
        assert self.ask("/v3/functions", large, Authorization=f"Bearer {self.token}") == 422
        self.stream()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            return False
        return True


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with RelayProcess(tmp_path, "--trusted-proxies", "127.0.0.1") as relay:
        yield Place(tmp_path, relay)


@contextmanager
def running(log: Path, *command: str | Path) -> Iterator[None]:
    with log.open("wb") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def checked(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_nginx_example_is_valid_and_serves(place: Place, tmp_path: Path) -> None:
    text = replaced(
        example("nginx", "map"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{place.port} ssl;"),
        (f"/etc/ssl/{NAME}.crt", str(place.certificate)),
        (f"/etc/ssl/private/{NAME}.key", str(place.certificate)),
        ("http://127.0.0.1:8650", f"http://{place.backend}"),
    )
    paths = " ".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    head = f"user root; pid {tmp_path}/nginx.pid; daemon off; error_log stderr; events {{}}"
    configuration.write_text(f"{head}\nhttp {{ access_log off; {paths}\n{text}\n}}\n")
    checked(NGINX, "-t", "-c", configuration)
    with running(tmp_path / "nginx.log", NGINX, "-c", configuration):
        place.works()


def test_the_caddy_example_is_valid_and_serves(place: Place, tmp_path: Path) -> None:
    text = replaced(
        example("text", NAME),
        (f"{NAME} {{", f"127.0.0.1:{place.port} {{\n    tls {place.certificate} {place.certificate}"),
        ("127.0.0.1:8650", place.backend),
    )
    configuration = tmp_path / "Caddyfile"
    configuration.write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + text)
    home = ("env", f"HOME={tmp_path}", f"XDG_DATA_HOME={tmp_path}", f"XDG_CONFIG_HOME={tmp_path}")
    words = ("--config", configuration, "--adapter", "caddyfile")
    checked(*home, CADDY, "validate", *words)
    with running(tmp_path / "caddy.log", *home, CADDY, "run", *words):
        place.works()


def test_the_caddy_example_is_valid_as_it_stands(tmp_path: Path) -> None:
    configuration = tmp_path / "Caddyfile"
    configuration.write_text(example("text", NAME))
    home = ("env", f"HOME={tmp_path}", f"XDG_DATA_HOME={tmp_path}", f"XDG_CONFIG_HOME={tmp_path}")
    checked(*home, CADDY, "validate", "--config", configuration, "--adapter", "caddyfile")
