"""Logins to a relay, for tests: its settings as a file, a client with PKCE, and the provider oidc-provider."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from tests.support.browser import Browser, Page
from tests.support.relay import RelayProcess
from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
REDIRECT = "http://127.0.0.1:9/callback"


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def toml(value: Any) -> str:
    """Return a value as TOML has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {toml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def people_file(directory: Path, **settings: Any) -> Path:
    """Write the settings of logins; return the file."""
    path = directory / "people.toml"
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in settings.items()))
    return path


class LoginClient:
    """A client of the relay's authorization server, public unless it has a secret."""

    def __init__(self, relay: RelayProcess, client_id: str = "mep-sdk", secret: str = "") -> None:
        self.relay, self.client_id, self.secret = relay, client_id, secret
        self.verifier = secrets.token_urlsafe(48)
        self.state = secrets.token_urlsafe(8)

    def address(self, **more: str | None) -> str:
        """Return where the browser begins."""
        challenge = urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()
        values: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": REDIRECT,
            "state": self.state,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            **more,
        }
        return f"{self.relay.url}/oauth/authorize?" + urlencode({k: v for k, v in values.items() if v is not None})

    def form(self, path: str, **fields: str) -> tuple[int, Any]:
        """Send a form; return status and decoded answer."""
        headers = {"content-type": "application/x-www-form-urlencoded"}
        if self.secret:
            headers["authorization"] = "Basic " + b64encode(f"{self.client_id}:{self.secret}".encode()).decode()
        else:
            fields = {"client_id": self.client_id, **fields}
        request = urllib.request.Request(self.relay.url + path, urlencode(fields).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def redeem(self, code: str, **more: str) -> tuple[int, Any]:
        """Exchange a code."""
        fields = {"code": code, "redirect_uri": REDIRECT, "code_verifier": self.verifier, **more}
        return self.form("/oauth/token", grant_type="authorization_code", **fields)

    def refresh(self, token: str, **more: str) -> tuple[int, Any]:
        """Refresh."""
        return self.form("/oauth/token", grant_type="refresh_token", refresh_token=token, **more)

    def consented(self, browser: Browser, page: Page, decision: str = "yes") -> dict[str, str]:
        """Decide on the consent page; return what the client is told."""
        back = browser.submit(page, decision=decision)
        assert back.status == 303, back.text
        assert back.location.startswith(REDIRECT), back.location
        return dict(parse_qsl(urlsplit(back.location).query))


class OidcProvider:
    """The npm package oidc-provider, which `make test` installs."""

    def __init__(self, relay_url: str, port: int) -> None:
        # The tests run in the service's interpreter, beside which they have their services.
        home = Path(f"{Path(sys.prefix)}-services") / "oidc-provider" / "node_modules"
        node = shutil.which("node")
        assert node, "node is missing: packaging/install.py --tests installs it"
        assert home.is_dir(), f"{home} is missing: packaging/install.py --tests makes it"
        script = ROOT / "tests" / "services" / "oidc-provider" / "server.mjs"
        self.issuer = f"http://127.0.0.1:{port}"
        self._command = [node, str(script), str(port), f"{relay_url}/oauth/callback/campus", str(home)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        environment = {**os.environ, "NODE_ENV": "development"}
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, env=environment)
        until("oidc-provider", self._listens, 90)
        return self

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "oidc-provider ended"
        try:
            with urllib.request.urlopen(f"{self.issuer}/.well-known/openid-configuration", timeout=10):
                return True
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def log_in(self, browser: Browser, page: Page, name: str) -> Page:
        """Pass through the provider's own pages, from the redirect to it; return the redirect to the relay."""
        page = browser.follow(page)
        page = browser.follow(browser.submit(page, login=name, password="any"))
        return browser.submit(page)  # consent

    def token(self, client_id: str, secret: str, **fields: str) -> Any:
        """Return the answer to a client-credentials request."""
        body = urlencode({"grant_type": "client_credentials", **fields}).encode()
        pair = b64encode(f"{client_id}:{secret.replace(' ', '%20')}".encode()).decode()
        headers = {"authorization": f"Basic {pair}", "content-type": "application/x-www-form-urlencoded"}
        request = urllib.request.Request(f"{self.issuer}/token", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())
