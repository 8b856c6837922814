"""A login in the person's browser: authorization code with PKCE, which comes back to a port of loopback."""

from __future__ import annotations

import hashlib
import queue
import secrets
import threading
import webbrowser
from base64 import urlsafe_b64encode
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from mep_sdk.authorization_server import CLIENT_ID, AuthorizationServer, OAuthRefused
from mep_sdk.errors import LoginRefused
from mep_sdk.profiles import Profile

WAIT_S = 600.0
"""How long the person has for the pages of relay and provider."""
_DONE = b"<!doctype html><title>MEP</title><p>The login has come back to mep-sdk. You can close this page."


class _Callback(BaseHTTPRequestHandler):
    """Takes the answer for this login's state, and refuses all else."""

    timeout = 30.0  # browsers open connections on which they ask nothing
    server: _Listener

    def do_GET(self) -> None:
        """Answer the browser."""
        parts = urlsplit(self.path)
        told = {name: values[0] for name, values in parse_qs(parts.query).items()}
        ours = secrets.compare_digest(told.get("state", "").encode(), self.server.state.encode())
        if parts.path != "/callback" or not ours:
            self.send_error(404)
            return
        self.send_response(200)
        for name, value in (("Content-Type", "text/html"), ("Cache-Control", "no-store"), ("Connection", "close")):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(_DONE)))
        self.end_headers()
        self.wfile.write(_DONE)
        self.server.answers.put(told)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log nothing: the address holds the code."""


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: str) -> None:
        super().__init__(("127.0.0.1", 0), _Callback)
        self.state = state
        self.answers: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()


def log_in_with_browser(
    server: AuthorizationServer,
    scope: str,
    show: Callable[[str], None],
    open_page: Callable[[str], object] = webbrowser.open,
) -> Profile:
    """Open the relay's page and return the tokens. `show` prints for the person. Raises LoginRefused, MepError."""
    metadata = server.metadata()
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(24)
    challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    with _Listener(state) as listener:
        threading.Thread(target=listener.serve_forever, name="mep-login", daemon=True).start()
        try:
            redirect_uri = f"http://127.0.0.1:{listener.server_address[1]}/callback"
            query = {
                "response_type": "code",
                "client_id": CLIENT_ID,
                "redirect_uri": redirect_uri,
                "state": state,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
                "scope": scope,
            }
            address = f"{server.relay_url}/oauth/authorize?{urlencode(query)}"
            show(f"Log in with your browser. If it does not open, go to:\n{address}")
            open_page(address)
            told = _answer(listener, server.relay_url)
        finally:
            listener.shutdown()
    if "error" in told:
        raise LoginRefused(url=server.relay_url, reason=told.get("error_description") or told["error"])
    if told.get("iss") != metadata.get("issuer"):
        raise LoginRefused(url=server.relay_url, reason=f"the answer came from {told.get('iss', 'nowhere')[:200]}.")
    try:
        return server.redeem(told.get("code", ""), redirect_uri, verifier)
    except OAuthRefused as error:
        raise LoginRefused(url=server.relay_url, reason=str(error)) from error


def _answer(listener: _Listener, relay_url: str) -> dict[str, str]:
    try:
        return listener.answers.get(timeout=WAIT_S)
    except queue.Empty:
        reason = f"the browser did not come back within {WAIT_S:.0f} s. Try: mep-sdk login --device"
        raise LoginRefused(url=relay_url, reason=reason) from None
