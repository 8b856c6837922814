"""An OpenID Connect provider that lies as a test asks: `HostileProvider()` serves on loopback.

Without a lie it is a correct provider that logs in the person of `claims` at once. Each lie is one attribute.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from base64 import urlsafe_b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey


class HostileProvider:
    """See the module."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
        self.published = [self.key]
        self.claims: dict[str, Any] = {"sub": "alice-1", "preferred_username": "alice@example.edu", "name": "Alice"}
        self.id_token: dict[str, Any] = {}
        """Claims of ID tokens that replace the right ones."""
        self.algorithm = "RS256"
        self.signing_key: Any = None
        """The key that signs, where it is another."""
        self.raw_token: str | None = None
        self.metadata: dict[str, Any] = {}
        self.answer_iss: str | None = None
        self.active: dict[str, dict[str, Any]] = {}
        """Answers to introspection by token."""
        self.delay_s = 0.0
        self.gate = threading.Event()
        """Introspection of tokens that begin with `slow` waits for it."""
        self.down = False
        self.asked: list[str] = []
        """The paths that were asked for."""
        self.authorizations: list[dict[str, str]] = []
        self._codes: dict[str, dict[str, str]] = {}
        self._tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def token(self, claims: dict[str, Any] | None = None, *, key: Any = None, alg: str = "RS256", **header: Any) -> str:
        """Return a signed JWT: a good access token for the audience `relay`, but for these claims."""
        now = int(time.time())
        whole = {"iss": self.issuer, "aud": "relay", "iat": now, "exp": now + 600, **self.claims, **(claims or {})}
        whole = {name: value for name, value in whole.items() if value is not None}
        key = key or self.key
        return jwt.encode({"alg": alg, "kid": "one", **header}, whole, key, algorithms=[alg])

    def rotate(self, kid: str = "two") -> None:
        """Sign with a new key, and publish it alone."""
        self.key = RSAKey.generate_key(2048, {"kid": kid, "use": "sig"})
        self.published = [self.key]

    def confused_token(self, claims: dict[str, Any] | None = None) -> str:
        """Return a token signed with the public key's PEM as a shared secret (joserfc refuses to make one)."""
        head = urlsafe_b64encode(b'{"alg":"HS256","kid":"one"}').rstrip(b"=").decode()
        signed = f"{head}.{self.token(claims).split('.')[1]}"
        mac = hmac.digest(self.key.as_pem(private=False), signed.encode(), "sha256")
        return f"{signed}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"

    def _id_token(self, request: dict[str, str]) -> str:
        if self.raw_token is not None:
            return self.raw_token
        claims = {"aud": request["client_id"], "nonce": request.get("nonce"), "auth_time": int(time.time())}
        key = self.signing_key or self.key
        if self.algorithm == "HS256":
            return self.confused_token(claims)
        return self.token({**claims, **self.id_token}, key=key, alg=self.algorithm)

    def _answer(self, method: str, path: str, values: dict[str, str], authorization: str) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration":
            here = {f"{name}_endpoint": f"{self.issuer}/{name}" for name in ("authorization", "token", "userinfo")}
            more = {"introspection_endpoint": f"{self.issuer}/introspect", "jwks_uri": f"{self.issuer}/jwks"}
            return 200, {"issuer": self.issuer, **here, **more, **self.metadata}
        if path == "/jwks":
            return 200, KeySet(self.published).as_dict(private=False)
        if path == "/authorization":
            self.authorizations.append(values)
            code = secrets.token_urlsafe(16)
            self._codes[code] = values
            back = {"code": code, "state": values["state"], **({"iss": self.answer_iss} if self.answer_iss else {})}
            return 302, f"{values['redirect_uri']}?{urlencode(back)}"
        if path == "/token":
            request = self._codes.pop(values.get("code", ""), None)
            if request is None:
                return 400, {"error": "invalid_grant"}
            access = secrets.token_urlsafe(16)
            self._tokens.add(access)
            return 200, {"access_token": access, "token_type": "Bearer", "id_token": self._id_token(request)}
        if path == "/userinfo":
            known = authorization.removeprefix("Bearer ")
            return (200, self.claims) if known in self._tokens or known.count(".") == 2 else (401, {})
        if path == "/introspect":
            if values.get("token", "").startswith("slow"):
                self.gate.wait(60)
            return 200, self.active.get(values.get("token", ""), {"active": False})
        return 404, {}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._serve("GET", "")

            def do_POST(self) -> None:
                self._serve("POST", self.rfile.read(int(self.headers.get("content-length", 0))).decode())

            def _serve(self, method: str, body: str) -> None:
                parts = urlsplit(self.path)
                provider.asked.append(parts.path)
                time.sleep(provider.delay_s)
                values = dict(parse_qsl(body or parts.query))
                answer: Any
                status, answer = 503, {}
                if not provider.down:
                    known = self.headers.get("authorization", "")
                    status, answer = provider._answer(method, parts.path, values, known)
                self.send_response(status)
                data = b""
                if status == 302:
                    self.send_header("location", answer)
                else:
                    data = json.dumps(answer).encode()
                    self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
