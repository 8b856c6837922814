"""A relay's side of a registration that a test can look into and change, and the command that registers with it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.cli import Cli

REFUSAL = {"reason": "no", "code": "TOKEN_UNKNOWN", "http_status_code": 401, "correlation_id": "c"}
TOKEN = "a-token-that-must-show-up-nowhere"


def uid_of_peer(port: int) -> int:
    """Return the uid of the socket on this host that has the local port `port`."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port and words[3] == "01":
            return int(words[7])
    raise AssertionError("no such connection")


def processes_showing(text: str) -> list[str]:
    """Return the processes with `text` in their command line or environment, this one apart."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        for kind in ("cmdline", "environ"):
            try:
                if text.encode() in (entry / kind).read_bytes():
                    found.append(f"{entry.name}/{kind}")
            except OSError:
                continue
    return found


class Registrar(ThreadingHTTPServer):
    """The relay's side of a registration, which looks at who calls."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls: list[dict[str, Any]] = []
        self.answer: tuple[int, dict[str, Any]] | None = None
        self.forgetful = False
        self.slow_s = 0.0
        self.signing_key, self.link_key = "22" * 32, "11" * 32
        self.earlier_keys: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Registrar

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "null")
        self.server.calls.append(
            {
                "method": self.command, "path": self.path, "body": body, "token": self.headers["authorization"],
                "uid": uid_of_peer(self.client_address[1]), "showing": processes_showing(TOKEN),
            }
        )  # fmt: skip
        time.sleep(self.server.slow_s)
        status, answer = self.server.answer or (200, self._registered(body))
        if self.server.forgetful and self.command == "PUT":
            status, answer = 404, {**REFUSAL, "code": "ENDPOINT_NOT_FOUND"}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST
    do_PUT = do_POST
    do_DELETE = do_POST

    def _registered(self, body: Any) -> dict[str, Any]:
        return {
            "endpoint_id": (body or {}).get("endpoint_uuid", ""), "link_address": "tcp://127.0.0.1:9",
            "link_public_key": self.server.link_key, "signing_public_key": self.server.signing_key,
            "owner": [{"id": "id-1", "username": "admin@example.edu"}], "earlier_keys": self.server.earlier_keys,
        }  # fmt: skip

    def log_message(self, *_: Any) -> None:
        pass


def configure(mep: Cli, registrar: Registrar, *more: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    token = str(mep.directory / "token")
    return mep(
        "configure", "site", "--multi-user", "--relay", registrar.url, "--token-file", token, *more, expect=expect
    )
