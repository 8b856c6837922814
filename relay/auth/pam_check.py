"""Checks one password with PAM, in a process of its own: `python -I -m relay.auth.pam_check`.

Modules of PAM may block, leave threads and files behind, or crash. None of it reaches the relay, which ends this
process after a deadline. Reads one JSON object from standard input, and says `yes`, `no` or `unavailable` on standard
output. Trusts the relay that started it. Called by relay.auth.passwords.
"""

from __future__ import annotations

import json
import pwd
import sys

import pam

PAM_AUTHINFO_UNAVAIL, PAM_SYSTEM_ERR, PAM_OPEN_ERR, PAM_ABORT = 9, 4, 1, 26
_UNAVAILABLE = frozenset({PAM_AUTHINFO_UNAVAIL, PAM_SYSTEM_ERR, PAM_OPEN_ERR, PAM_ABORT})


def main() -> None:
    """Check the password on standard input."""
    asked = json.load(sys.stdin)
    print(check(asked["service"], asked["user"], asked["password"], asked["min_uid"]), flush=True)  # noqa: T201


def check(service: str, user: str, password: str, min_uid: int) -> str:
    """Return `yes`, `no` or `unavailable`."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        account = None
    if account is not None and account.pw_name != user:
        account = None  # a directory that ignores case must not give one account two names
    authenticator = pam.PamAuthenticator()
    # Asked for unknown names too: the time that it takes tells nothing about which exist.
    right = authenticator.authenticate(user, password, service=service, call_end=True)
    if right and account is not None and account.pw_uid >= min_uid:
        return "yes"
    return "unavailable" if authenticator.code in _UNAVAILABLE else "no"


if __name__ == "__main__":
    main()
