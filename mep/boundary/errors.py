"""Errors and stages of the privileged side. Standard library only: the monitor imports this.

Each `code` here is also a code in mep_wire.errors, which has the sentence for the person; a test compares
the two. The texts of the exceptions below are for the administrator's log.
"""

from __future__ import annotations

import enum
import errno
import os


class StartStage(enum.IntEnum):
    """The stage at which the start of a user endpoint failed. Stages are in the order in which they happen."""

    VERIFY = 1
    MAP = 2
    CAPS = 3
    FORK_KEEPER = 4
    LOOKUP_USER = 5
    POLICY = 6
    HOOK = 7
    PAM_ACCOUNT = 8
    SETGROUPS = 9
    PAM_CRED = 10
    PAM_SESSION = 11
    FORK = 12
    CGROUP = 13
    RLIMITS = 14
    CAPABILITIES = 15
    SETGID = 16
    SETUID = 17
    KEYRING = 18
    NO_NEW_PRIVS = 19
    PROVE_DROP = 20
    DESCRIPTORS = 21
    SETSID = 22
    CHDIR = 23
    EXEC = 24
    READY = 25


class Refusal(enum.StrEnum):
    """Codes with which the endpoint's own processes may refuse a start."""

    IDENTITY_NOT_MAPPED = "IDENTITY_NOT_MAPPED"
    IDENTITY_AMBIGUOUS = "IDENTITY_AMBIGUOUS"
    IDENTITY_REMAPPED = "IDENTITY_REMAPPED"
    MAPPING_UNCONFIRMED = "MAPPING_UNCONFIRMED"
    ACCOUNT_REFUSED = "ACCOUNT_REFUSED"
    NOT_ADMITTED_NOW = "NOT_ADMITTED_NOW"
    ACCOUNT_SHARED = "ACCOUNT_SHARED"
    ACCOUNT_BANNED = "ACCOUNT_BANNED"
    ENDPOINT_DRAINING = "ENDPOINT_DRAINING"
    MAPPER_UNAVAILABLE = "MAPPER_UNAVAILABLE"
    START_REQUEST_REFUSED = "START_REQUEST_REFUSED"
    START_REQUEST_STALE = "START_REQUEST_STALE"
    START_FAILED = "START_FAILED"
    START_INTERRUPTED = "START_INTERRUPTED"
    START_TIMEOUT = "START_TIMEOUT"
    SITE_BUSY = "SITE_BUSY"
    PERSON_LIMIT = "PERSON_LIMIT"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TOO_MANY_PROCESSES = "TOO_MANY_PROCESSES"


PUBLIC_TEXTS: dict[Refusal, str] = {
    Refusal.IDENTITY_REMAPPED: "This site now maps you to another local account, and ended your process under the "
    "old one. Submit again.",
    Refusal.MAPPING_UNCONFIRMED: "For too long, this site could not confirm which local account is yours, and it "
    "ended your process. Submit again.",
    Refusal.ACCOUNT_REFUSED: "This site's policy does not admit you. Ask its administrators, with the correlation id.",
    Refusal.NOT_ADMITTED_NOW: "This site does not admit you at the moment: {reason}. Your tasks wait.",
    Refusal.ACCOUNT_SHARED: "This site lets only one person at a time use an account, and another person is using "
    "yours. Try again later.",
    Refusal.ACCOUNT_BANNED: "This site's administrators have blocked you: {reason}. Ask them, with the correlation id.",
    Refusal.ENDPOINT_DRAINING: "This site starts no new processes at the moment: {reason}. Your tasks wait.",
    Refusal.MAPPER_UNAVAILABLE: "This site cannot look up your local account at the moment. Try again later.",
    Refusal.START_FAILED: "The site could not start your process (at stage {stage}). "
    "Tell its administrators, with the correlation id.",
    Refusal.START_INTERRUPTED: "Your process at the site was ended while it was starting ({reason}). If it "
    "happens again, tell the administrators.",
    Refusal.START_TIMEOUT: "Your process at the site was not ready within {seconds} s. "
    "Tell its administrators, with the correlation id.",
    Refusal.SITE_BUSY: "The site is running as many user endpoints as it allows ({limit}). Your tasks wait until "
    "one ends.",
    Refusal.PERSON_LIMIT: "You are running as many user endpoints as this site allows one person ({limit}). Your "
    "tasks wait until one ends.",
    Refusal.AUDIT_UNAVAILABLE: "The site cannot write its audit log at the moment, and starts nothing without it. "
    "Your tasks wait.",
    Refusal.OUT_OF_MEMORY: "Your process at the site ran out of memory ({limit}). Use less, or ask its administrators.",
    Refusal.TOO_MANY_PROCESSES: "Your process at the site reached its limit of processes and threads ({limit}). "
    "Start fewer.",
}
"""The sentences of mep_wire.errors that monitor and keeper send themselves. The others come from the mapper."""

OWN_LIMIT = PUBLIC_TEXTS[Refusal.PERSON_LIMIT]
NO_SLOT = "The site starts no more than {limit} user endpoints at a time, and others are starting. Your tasks wait."
"""SITE_BUSY in other words: for a start beyond `max_starting`."""
STILL_ENDING = "An earlier process of this user endpoint is still ending. Your tasks wait."
"""SITE_BUSY in other words: for a start that waited too long for the end of the process before it."""

DRAINED = "This site starts no new processes at the moment: {reason}. Submit again later."
"""ENDPOINT_DRAINING in other words: for a drain that refuses starts."""
SITE_SAYS = "The site refuses to start your process: {reason}"
"""ACCOUNT_REFUSED in other words: with the text that the site's hook or its PAM modules have for the person."""

NO_ROOM = "The site has no room for another process at the moment (at stage {stage}). Your tasks wait."
"""SITE_BUSY in other words: for a start that the host lacked a resource for."""
SCARCE = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})
"""errno values of a temporary shortage: another try may succeed."""


REVOCATIONS = frozenset(
    {
        Refusal.IDENTITY_NOT_MAPPED, Refusal.IDENTITY_AMBIGUOUS, Refusal.IDENTITY_REMAPPED,
        Refusal.MAPPING_UNCONFIRMED, Refusal.ACCOUNT_REFUSED, Refusal.ACCOUNT_BANNED,
    }
)  # fmt: skip
"""Codes with which a running user endpoint is ended because its owner may no longer have it."""


def public_text(code: Refusal, **fields: object) -> str:
    """Return the sentence for the person about `code`, one of PUBLIC_TEXTS."""
    return PUBLIC_TEXTS[code].format(**fields)


class SpawnFailed(Exception):
    """A stage of a start failed. `errno` is 0 if no system call failed."""

    def __init__(self, stage: StartStage, errno: int = 0, detail: str = "") -> None:
        self.stage, self.errno, self.detail = stage, errno, detail
        reason = os.strerror(errno) if errno else "refused"
        super().__init__(f"{stage.name}: {reason}" + (f": {detail}" if detail else ""))


class BoundaryViolation(Exception):
    """A child sent an unknown, malformed, oversized or out-of-phase message: it is killed."""


class ConfigRefused(Exception):
    """A configuration is refused. The text names the file, the key and the reason."""

    def __init__(self, where: str, key: str, reason: str) -> None:
        self.where, self.key, self.reason = where, key, reason
        super().__init__(f"{where}: {key}: {reason}" if key else f"{where}: {reason}")
