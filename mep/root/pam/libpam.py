"""PAM, by ctypes on libpam.so.0: account, credentials and session of one user, without any prompt.

Trusts the host's PAM configuration. Its modules run in this process, as root, and may hang or change their caller.
Therefore only processes made for it call this file: the PAM process (session_process.py) for a session; for the
account stage alone, the process of `mep map`, and a checker if `pam.recheck` is set. libpam is loaded when the first
transaction starts, which happens only if PAM is enabled. Numbers are those of Linux-PAM's security/_pam_types.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from functools import cache
from typing import Any

from mep.boundary.channel import clip
from mep.boundary.errors import SITE_SAYS, Refusal, SpawnFailed, StartStage
from mep.boundary.pam_service import check_service
from mep.boundary.text import printable
from mep.root.account.lookup import NotKnownNow, StartRefused

LIBRARY = "libpam.so.0"
SUCCESS = 0
BROKEN = frozenset({1, 2, 3, 4, 5, 9, 26, 28})
"""Codes of a PAM that doesn't work (modules, memory, unreachable directory), as opposed to one that refuses."""
CLOSED = frozenset({6, 10, 13, 27})
"""No permission, no such user, account expired, password expired and inactive: the account is not admitted at all."""
_WAIT_AT_ACCOUNT = frozenset({8, 12, 15, 16, 17, 20, 31})
"""Answers about an account that a later try may not get. A password has to be changed (12); credentials are away or not
usable now (8, 15 to 17, 20); an answer is not complete (31)."""
_WAIT_ANYWHERE = frozenset({22, 24, 30})
"""A lock that another process holds (22), and the two that ask for another try (24, 30)."""
_AUTH_ERR = 7
"""pam_nologin's, with the text of its file, and pam_deny's, without any."""
_NOLOGIN = ("/run/nologin", "/etc/nologin")
_AWAY = 9
"""PAM_AUTHINFO_UNAVAIL: a directory doesn't answer."""

_USER = 2
_ESTABLISH_CRED, _DELETE_CRED = 0x2, 0x4
_BUF_ERR, _CONV_ERR = 5, 19
_ERROR_MSG, _TEXT_INFO = 3, 4
_MAX_MESSAGES, _MAX_TEXT, _MAX_TEXTS = 32, 512, 16
_MAX_REASON = 512
"""Longest text of modules, in bytes, that a person gets."""


def shortage(code: int) -> int:
    """Return the errno equivalent to `code`, one of BROKEN, if another try may succeed; else 0."""
    return {_AWAY: errno.EAGAIN, _BUF_ERR: errno.ENOMEM}.get(code, 0)


class PamFailed(Exception):
    """A PAM call failed. `code` is PAM's own; `texts` are its modules' messages to the person, without `prompts`."""

    def __init__(self, call: str, code: int, reason: str, texts: list[str], prompts: list[str]) -> None:
        self.call, self.code, self.reason, self.texts = call, code, reason, texts
        said = f"; its modules said: {' / '.join([*texts, *prompts])}" if texts or prompts else ""
        super().__init__(f"{call}: {reason} (PAM code {code}){said}")

    def is_temporary(self, *, account_stage: bool) -> bool:
        """Return whether this refusal may end by itself: such a start waits."""
        if self.code == _AUTH_ERR and account_stage:
            return bool(self.texts) or any(map(os.path.exists, _NOLOGIN))
        return self.code in _WAIT_ANYWHERE or (account_stage and self.code in _WAIT_AT_ACCOUNT)


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("unused", ctypes.c_int))


_Converse = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.POINTER(_Message)), ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
)  # fmt: skip


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _Converse), ("data", ctypes.c_void_p))


@cache
def _library() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    """Return libpam and libc with their signatures. Raises OSError if libpam is missing."""
    pam, libc = ctypes.CDLL(LIBRARY), ctypes.CDLL(None)
    handle = ctypes.c_void_p
    pam.pam_start.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Conversation), ctypes.POINTER(handle)
    )  # fmt: skip
    for name in ("pam_acct_mgmt", "pam_setcred", "pam_open_session", "pam_close_session", "pam_end"):
        getattr(pam, name).argtypes = (handle, ctypes.c_int)
    pam.pam_strerror.argtypes, pam.pam_strerror.restype = (handle, ctypes.c_int), ctypes.c_char_p
    pam.pam_get_item.argtypes = (handle, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p))
    pam.pam_getenvlist.argtypes, pam.pam_getenvlist.restype = (handle,), ctypes.POINTER(handle)
    libc.calloc.argtypes, libc.calloc.restype = (ctypes.c_size_t, ctypes.c_size_t), handle
    libc.free.argtypes, libc.free.restype = (handle,), None
    return pam, libc


class Transaction:
    """One PAM transaction. Every method raises PamFailed with PAM's own text."""

    def __init__(self, service: str, user: str, hear: Callable[[str], None]) -> None:
        """Start it. `hear` is called with each text that a module has for the user.

        Raises OSError if libpam is missing, or if the service's file is missing or not trusted.
        """
        check_service(service)
        self._pam, self._libc = _library()
        self._hear, self._texts, self._prompts = hear, list[str](), list[str]()
        self._conversation = _Conversation(_Converse(self._converse), None)  # libpam keeps a pointer to it
        self._handle = ctypes.c_void_p()
        self._last = SUCCESS
        code = self._pam.pam_start(
            service.encode(), user.encode(), ctypes.byref(self._conversation), ctypes.byref(self._handle)
        )
        self._check("pam_start", code)

    def _check(self, call: str, code: int) -> None:
        self._last = code
        texts, self._texts = self._texts, []
        prompts, self._prompts = self._prompts, []
        if code != SUCCESS:
            reason = self._pam.pam_strerror(self._handle, code) or b""
            raise PamFailed(call, code, reason.decode("utf-8", "replace"), texts, prompts)

    def check_account(self) -> None:
        """Ask whether the account may be used now."""
        self._check("pam_acct_mgmt", self._pam.pam_acct_mgmt(self._handle, 0))

    def establish_credentials(self) -> None:
        """Establish the credentials. Modules may add groups to this process."""
        self._check("pam_setcred", self._pam.pam_setcred(self._handle, _ESTABLISH_CRED))

    def open_session(self) -> None:
        """Open the session. Modules change limits, umask, keyring and more of this process."""
        self._check("pam_open_session", self._pam.pam_open_session(self._handle, 0))

    def close_session(self) -> None:
        """Close the session."""
        self._check("pam_close_session", self._pam.pam_close_session(self._handle, 0))

    def delete_credentials(self) -> None:
        """Delete the credentials."""
        self._check("pam_setcred(delete)", self._pam.pam_setcred(self._handle, _DELETE_CRED))

    def end(self) -> None:
        """End the transaction."""
        self._check("pam_end", self._pam.pam_end(self._handle, self._last))

    def user(self) -> str:
        """Return the user's name, which a module may have changed."""
        item = ctypes.c_char_p()
        self._check("pam_get_item", self._pam.pam_get_item(self._handle, _USER, ctypes.byref(item)))
        return (item.value or b"").decode("utf-8", "surrogateescape")

    def environment(self) -> list[bytes]:
        """Return the variables that modules set for the user's environment, each `NAME=VALUE`."""
        entries = self._pam.pam_getenvlist(self._handle)
        if not entries:
            return []
        found, at = [], 0
        while entries[at]:
            found.append(ctypes.string_at(entries[at]))
            self._libc.free(entries[at])
            at += 1
        self._libc.free(entries)
        return found

    def _converse(self, count: int, messages: Any, responses: Any, _data: Any) -> int:
        """Record texts. Refuse every prompt, because no user is present to answer."""
        if not 0 < count <= _MAX_MESSAGES:
            return _CONV_ERR
        for at in range(count):
            text = (messages[at].contents.text or b"")[:_MAX_TEXT].decode("utf-8", "replace").strip()
            asks = messages[at].contents.style not in {_ERROR_MSG, _TEXT_INFO}
            if asks:
                self._note(self._prompts, f"asks for an answer, which is impossible here: {text}")
                return _CONV_ERR
            self._note(self._texts, text)
        answer = self._libc.calloc(count, ctypes.sizeof(_Response))
        if not answer:
            return _BUF_ERR
        responses[0] = answer
        return SUCCESS

    def _note(self, texts: list[str], text: str) -> None:
        if len(texts) < _MAX_TEXTS:
            texts.append(text)
            self._hear(text)


def check_account(service: str, user: str, *, running: bool = False) -> None:
    """Ask the account stage alone, without a session.

    Raise StartRefused if PAM's `service` doesn't admit `user`, SpawnFailed if PAM doesn't work.

    `running`: the user has running processes. Then only a closed account raises StartRefused, and all other failures
    raise SpawnFailed.
    """
    try:
        transaction = Transaction(service, user, lambda _: None)
        transaction.check_account()
        name = transaction.user()
        transaction.end()
    except PamFailed as failure:
        if failure.code in BROKEN or (running and failure.code not in CLOSED):
            raise SpawnFailed(StartStage.PAM_ACCOUNT, 0, str(failure)) from None
        raise refusal_of(StartStage.PAM_ACCOUNT, failure) from None
    except OSError as error:
        raise SpawnFailed(StartStage.PAM_ACCOUNT, error.errno or 0, str(error)) from None
    if name != user:
        detail = f"PAM service {service} means another user: {name}"
        raise StartRefused(StartStage.PAM_ACCOUNT, Refusal.ACCOUNT_REFUSED, detail)


def refusal_of(stage: StartStage, failure: PamFailed) -> StartRefused:
    """Return the refusal of a start for PAM's answer: for now, if a later try may succeed, else for good.

    Modules address their texts to the person, so the person gets them: on one line, escaped and clipped.
    """
    said = clip(printable(" ".join(" ".join(failure.texts).split())), _MAX_REASON).strip()
    if failure.is_temporary(account_stage=stage is StartStage.PAM_ACCOUNT):
        reason = (said or failure.reason).rstrip(".")
        return NotKnownNow(stage, Refusal.NOT_ADMITTED_NOW, str(failure), reason=reason)
    return StartRefused(stage, Refusal.ACCOUNT_REFUSED, str(failure), SITE_SAYS.format(reason=said) if said else "")
