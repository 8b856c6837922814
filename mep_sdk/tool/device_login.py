"""A login for a terminal without a browser: the person types a code into a browser elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from mep_sdk.authorization_server import AuthorizationServer, OAuthRefused
from mep_sdk.errors import LoginRefused
from mep_sdk.profiles import Profile
from mep_wire.errors import RelayUnreachable

_SLOWER_S = 5.0
_LEAST_S, _MOST_S = 1.0, 60.0
_LONGEST_S = 3600.0
_REASONS = {"access_denied": "it was refused in the browser.", "expired_token": "the code has expired. Begin again."}


def log_in_with_device(
    server: AuthorizationServer, scope: str, show: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> Profile:
    """Show a code, wait for the person's decision and return the tokens. Raises LoginRefused, MepError."""
    try:
        begun = server.begin_device(scope)
    except OAuthRefused as error:
        raise LoginRefused(url=server.relay_url, reason=str(error)) from error
    show(f"Go to {begun.verification_uri} and type this code: {begun.user_code}")
    if begun.verification_uri_complete:
        show(f"Or go to {begun.verification_uri_complete}")
    interval_s = min(max(begun.interval, _LEAST_S), _MOST_S)
    ends = time.monotonic() + min(begun.expires_in, _LONGEST_S)
    while time.monotonic() < ends:
        pause(interval_s)  # as RFC 8628 wants it
        try:
            return server.redeem_device(begun.device_code)
        except RelayUnreachable:
            interval_s = min(interval_s + _SLOWER_S, _MOST_S)
        except OAuthRefused as error:
            if error.error == "slow_down":
                interval_s = min(interval_s + _SLOWER_S, _MOST_S)
            elif error.error != "authorization_pending":
                reason = _REASONS.get(error.error, str(error))
                raise LoginRefused(url=server.relay_url, reason=reason) from error
    raise LoginRefused(url=server.relay_url, reason=_REASONS["expired_token"])
