"""The relay as an OAuth 2.0 authorization server: what docs/relay-login.md describes, as method calls.

Each call makes one attempt. The addresses are those of the relay that the person named, never others that an answer
names: tokens go nowhere else.
"""

from __future__ import annotations

import base64
import time
from typing import Any, TypeVar
from urllib.parse import quote_plus, urlencode

import msgspec

from mep_sdk.errors import RelayAnswerInvalid
from mep_sdk.http import Connections, describe
from mep_sdk.profiles import Profile
from mep_sdk.settings import ClientSettings
from mep_wire.errors import RelayUnreachable
from mep_wire.text import printable

_T = TypeVar("_T")
CLIENT_ID = "mep-sdk"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_ANSWER_S = 20.0
_LATER = frozenset({429, 502, 503, 504})
_decoder = msgspec.json.Decoder(dict[str, Any])


class OAuthRefused(Exception):
    """The relay refused a grant: its `error` and its sentence."""

    def __init__(self, error: str, sentence: str) -> None:
        self.error, self.sentence = error, sentence
        super().__init__(sentence or error)


class DeviceCode(msgspec.Struct, kw_only=True):
    """The relay's answer to a device that begins a login."""

    device_code: str
    user_code: str
    verification_uri: str
    verification_uri_complete: str = ""
    expires_in: float = 900.0
    interval: float = 5.0


_device_codes = msgspec.json.Decoder(DeviceCode)
_profiles = msgspec.json.Decoder(Profile)


class AuthorizationServer:
    """One relay's logins, for the public client `mep-sdk` or for a service with a secret.

    Every method raises RelayUnreachable, RelayAnswerInvalid, ProxyUnsupported or CaBundleUnusable, and those that ask
    for tokens OAuthRefused.
    """

    def __init__(self, relay_url: str, client_id: str = CLIENT_ID, secret: str = "") -> None:
        self.relay_url, self._client_id, self._secret = relay_url, client_id, secret

    def metadata(self) -> dict[str, Any]:
        """Return what the relay says about its logins."""
        return self._ask("GET", "/.well-known/oauth-authorization-server", None)

    def begin_device(self, scope: str) -> DeviceCode:
        """Begin a login for a device."""
        told = self._ask("POST", "/oauth/device", {"scope": scope})
        return self._converted(told, _device_codes)

    def redeem_device(self, device_code: str) -> Profile:
        """Return the tokens of a device, whose person has decided."""
        return self._tokens({"grant_type": DEVICE_GRANT, "device_code": device_code})

    def redeem(self, code: str, redirect_uri: str, verifier: str) -> Profile:
        """Exchange a code."""
        fields = {"code": code, "redirect_uri": redirect_uri, "code_verifier": verifier}
        return self._tokens({"grant_type": "authorization_code", **fields})

    def refresh(self, refresh_token: str) -> Profile:
        """Return the next tokens."""
        return self._tokens({"grant_type": "refresh_token", "refresh_token": refresh_token})

    def service_token(self, scope: str) -> Profile:
        """Return a token for the service itself."""
        return self._tokens({"grant_type": "client_credentials", "scope": scope})

    def revoke(self, token: str) -> None:
        """Revoke a token and all others of its login."""
        self._ask("POST", "/oauth/revoke", {"token": token})

    def _tokens(self, fields: dict[str, str]) -> Profile:
        asked = time.time()
        told = self._ask("POST", "/oauth/token", fields)
        expires_in = told.pop("expires_in", None)
        if isinstance(expires_in, int | float) and not isinstance(expires_in, bool):
            told["expires_at"] = asked + expires_in
        found = self._converted(told | {"relay_url": self.relay_url, "username": ""}, _profiles)
        if not _is_token(found.access_token) or (found.refresh_token and not _is_token(found.refresh_token)):
            raise self._invalid("a token holds characters that no token has")
        return found

    def _ask(self, method: str, path: str, fields: dict[str, str] | None) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        headers, body = {"Accept": "application/json", "User-Agent": "mep-sdk"}, None
        if fields is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            if self._secret:
                pair = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}"
                headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
            else:
                fields = {"client_id": self._client_id, **fields}
            body = urlencode(fields).encode()
        started = time.monotonic()
        connections = Connections(ClientSettings(self.relay_url, ""))
        try:
            answer = connections.ask(method, path, body, headers, _ANSWER_S)
        except (OSError, HTTPError) as error:
            raise self._unreachable(describe(error), started) from error
        finally:
            connections.close()
        if answer.status in _LATER:
            raise self._unreachable(f"it answered {answer.status}", started)
        try:
            told = _decoder.decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise self._invalid(f"{answer.status} for {path}") from error
        if answer.status >= 300:
            said = told.get("error"), told.get("error_description") or told.get("reason")
            raise OAuthRefused(*(printable(each) if isinstance(each, str) else "" for each in said))
        return told

    def _converted(self, told: dict[str, Any], decoder: msgspec.json.Decoder[_T]) -> _T:
        try:
            return decoder.decode(msgspec.json.encode(told))
        except msgspec.ValidationError as error:
            raise self._invalid(str(error)) from error

    def _invalid(self, reason: str) -> RelayAnswerInvalid:
        return RelayAnswerInvalid(url=self.relay_url, reason=reason)

    def _unreachable(self, reason: str, started: float) -> RelayUnreachable:
        waited_s = round(time.monotonic() - started, 1)
        return RelayUnreachable(url=self.relay_url, reason=reason, waited_s=waited_s)


def _is_token(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text and bool(text)
