"""Tokens that expire: those of a stored login, refreshed under a lock that processes share, and those of a service."""

from __future__ import annotations

import contextlib
import threading
import time

import msgspec

from mep_sdk.errors import LoginOver, LoginRefused
from mep_sdk.profiles import Profile, find_profile, locked, remove_profile, save_profile
from mep_wire.errors import RelayUnreachable

EARLY_S = 60.0
"""How long before its end a token is renewed."""
SERVICE_SCOPE = "submit read"


def _lasts(profile: Profile, seconds: float) -> bool:
    return not profile.expires_at or profile.expires_at - time.time() > seconds


class StoredLogin:
    """The tokens of a profile. Another process may renew them: each renewal begins with a look at the file."""

    def __init__(self, name: str, profile: Profile) -> None:
        self.name, self._profile = name, profile
        self._lock = threading.Lock()

    def token(self) -> str:
        """Return a token that is valid for a while. Raises RelayUnreachable, LoginOver, NotConfigured."""
        profile = self._profile
        if _lasts(profile, EARLY_S):
            return profile.access_token
        with self._lock:
            if not _lasts(self._profile, EARLY_S):
                self._renew("")
            return self._profile.access_token

    def renewed(self, refused: str) -> str:
        """Return another token than this one. Raises as `token` does."""
        with self._lock:
            if self._profile.access_token == refused:
                self._renew(refused)
            return self._profile.access_token

    def end(self) -> None:
        """Remove the login here and at the relay. Raises RelayUnreachable, with the file gone."""
        log_out(self.name)

    def _renew(self, refused: str) -> None:
        with locked(self.name):
            stored = find_profile(self.name)
            if stored is None or stored.relay_url != self._profile.relay_url:
                raise self._over("it was ended here.")
            self._profile = stored
            if stored.access_token != refused and _lasts(stored, EARLY_S):
                return
            try:
                self._profile = self._refreshed(stored)
            except RelayUnreachable:
                if stored.access_token == refused or not _lasts(stored, 0.0):
                    raise
            else:
                save_profile(self.name, self._profile)

    def _refreshed(self, stored: Profile) -> Profile:
        """Return the next tokens. Raises RelayUnreachable, LoginOver."""
        from mep_sdk.authorization_server import AuthorizationServer, OAuthRefused

        if not stored.refresh_token:
            raise self._over("its token has expired, and the relay gave none to renew it with.")
        try:
            new = AuthorizationServer(stored.relay_url).refresh(stored.refresh_token)
        except OAuthRefused as error:
            raise self._over(str(error)) from error
        kept = new.refresh_token or stored.refresh_token
        return msgspec.structs.replace(new, username=stored.username, refresh_token=kept)

    def _over(self, reason: str) -> LoginOver:
        return LoginOver(url=self._profile.relay_url, reason=reason, profile=self.name)


class ServiceLogin:
    """The tokens of a service, by its client id and secret. They are stored nowhere."""

    def __init__(self, relay_url: str, client_id: str, secret: str) -> None:
        self._relay_url, self._client_id, self._secret = relay_url, client_id, secret
        self._lock = threading.Lock()
        self._current: Profile | None = None

    def token(self) -> str:
        """Return a token that is valid for a while. Raises RelayUnreachable, LoginRefused."""
        with self._lock:
            if self._current is None or not _lasts(self._current, EARLY_S):
                self._current = self._asked()
            return self._current.access_token

    def renewed(self, refused: str) -> str:
        """Return another token than this one. Raises as `token` does."""
        with self._lock:
            if self._current is None or self._current.access_token == refused:
                self._current = self._asked()
            return self._current.access_token

    def end(self) -> None:
        """Revoke the current token. Raises RelayUnreachable."""
        from mep_sdk.authorization_server import AuthorizationServer

        with self._lock:
            current, self._current = self._current, None
        if current is not None:
            AuthorizationServer(self._relay_url, self._client_id, self._secret).revoke(current.access_token)

    def _asked(self) -> Profile:
        from mep_sdk.authorization_server import AuthorizationServer, OAuthRefused

        try:
            return AuthorizationServer(self._relay_url, self._client_id, self._secret).service_token(SERVICE_SCOPE)
        except OAuthRefused as error:
            raise LoginRefused(url=self._relay_url, reason=str(error)) from error


def log_out(name: str) -> None:
    """Remove a profile, and have the relay revoke its tokens. Raises RelayUnreachable, with the profile gone."""
    from mep_sdk.authorization_server import AuthorizationServer, OAuthRefused

    with locked(name):
        stored = find_profile(name)
        remove_profile(name)
    if stored is not None:
        with contextlib.suppress(OAuthRefused):  # it is no token there any longer
            AuthorizationServer(stored.relay_url).revoke(stored.refresh_token or stored.access_token)
