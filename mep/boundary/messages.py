"""The messages of the privilege boundary: one frozen dataclass each, imported by both ends.

Each travels alone in one datagram of a SOCK_SEQPACKET socketpair, never larger than MAX_FRAME_BYTES. A
field is text, bytes or an integer with a declared cap, and some have a form, which the decoder requires. A message has
no optional, nested or repeated fields, so the decoder is one short loop (mep/boundary/channel.py). Documents (start
requests, bundles, keys) never travel in a message: they go by descriptor, as sealed memfds.

`ref` is the sender's own number for an exchange and comes back in the answer.

A message about a user endpoint's process names it by its `incarnation`: INCARNATION_BYTES that the mapper chose, or
empty (unknown) for a keeper of an older version. Messages between monitor and keeper need no incarnation, because each
keeper has one process and its own channel, which identifies it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from mep.boundary.errors import Refusal

MAX_FRAME_BYTES = 16 * 1024
MAX_TEXT = 4096
"""Longest text field, in bytes of UTF-8, unless its declaration says less."""

MAX_DOCUMENT_BYTES = 512 * 1024
"""Largest document that travels as a sealed memfd between manager, monitor and mapper."""
EPOCH_BYTES = INCARNATION_BYTES = 16
PERSON_BYTES = 32
MAX_FIGURES_BYTES = 4096
MAX_ADMIN_TEXT = 512
"""Longest text of an administrator's for a person."""
MAX_ADMIN_ROWS = 64
MAX_STARTS_OUTSTANDING = 1024
"""Most unanswered StartEndpoint messages of a manager; one more is a violation."""

UEP_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""The form of a user endpoint's id, which becomes a file's name."""
ACCOUNT = r"[^\s/:\0-\x1f\x7f-][^\s/:\0-\x1f\x7f]{0,31}"
"""The form of a local account's name."""
_REFUSAL = "|".join(Refusal)


def text(cap: int = MAX_TEXT, form: str = "") -> Any:
    """Declare a text field of at most `cap` bytes of UTF-8 without NUL, of this form (a regular expression)."""
    return field(metadata={"cap": cap, "form": form})


def account(*, none: bool = False) -> Any:
    """Declare the name of a local account; with `none`, it may be empty."""
    return text(32, f"({ACCOUNT})?" if none else ACCOUNT)


def blob(cap: int) -> Any:
    """Declare a bytes field of at most `cap` bytes."""
    return field(metadata={"cap": cap})


def exactly(size: int) -> Any:
    """Declare a bytes field of this size."""
    return field(metadata={"cap": size, "least": size})


def flag() -> Any:
    """Declare an integer that is 0 or 1."""
    return field(metadata={"form": "[01]"})


def process_name() -> Any:
    """Declare the process that a message is about; empty if unknown. The field is always on the wire."""
    return field(default=b"", metadata={"cap": INCARNATION_BYTES})


class StartOutcome(enum.StrEnum):
    """The outcome of a start."""

    STARTED = "started"
    ALREADY_RUNNING = "already_running"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"
    TRY_LATER = "try_later"
    """All slots are taken, or half of them by this account: the manager has it asked for again."""


# --- mapper -> monitor ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapperReady:
    """The mapper has read its configuration and drawn its epoch. Once."""

    epoch: bytes = exactly(EPOCH_BYTES)


@dataclass(frozen=True, slots=True)
class Mapped:
    """The request with `ref` is genuine and fresh, and maps to this user. Carries one descriptor: the sealed
    memfd with the verified start. `identities` is for the audit log: JSON, opaque to the monitor. `person` is a digest
    of the requester, the same for all identities of one person. `incarnation` names the process that may be started.
    `literal` is 1 if the mapping file itself spells the account's name, else 0."""

    ref: int
    uep_id: str = text(36, UEP_ID)
    local_user: str = account()
    identities: str = text(4096)
    correlation_id: str = text(64)
    person: bytes = exactly(PERSON_BYTES)
    incarnation: bytes = exactly(INCARNATION_BYTES)
    literal: int = flag()


@dataclass(frozen=True, slots=True)
class NotMapped:
    """The request with `ref` is refused. `code` is a mep.boundary.errors.Refusal. `public` may leave the host,
    `detail` may not. `uep_id` and `identities` (as in Mapped) are empty if the request could not be read."""

    ref: int
    uep_id: str = text(36)
    code: str = text(64, _REFUSAL)
    public: str = text(1024)
    detail: str = text(4096)
    correlation_id: str = text(64)
    identities: str = text(4096)


@dataclass(frozen=True, slots=True)
class StillMapped:
    """The request with `ref` is a genuine and fresh re-check, and its person maps to this user now."""

    ref: int
    uep_id: str = text(36)
    local_user: str = text(32)
    correlation_id: str = text(64)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class NoLongerMapped:
    """The request with `ref` is a genuine and fresh re-check, and its person no longer maps to an account (the other
    fields as in NotMapped). With `code` MAPPER_UNAVAILABLE, the mapper can't tell at the moment."""

    ref: int
    uep_id: str = text(36)
    code: str = text(64, _REFUSAL)
    public: str = text(1024)
    detail: str = text(4096)
    correlation_id: str = text(64)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class MappingStatus:
    """The state of the mapper's mapping file, for the log and `mep status`. An empty `problem` is good."""

    loaded: str = text(1024)
    problem: str = text(4096)


@dataclass(frozen=True, slots=True)
class ReloadNeeded:
    """The mapping names a directory or a program, and the mapper was started without access to them; or the reverse."""


# --- monitor -> mapper ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapRequest:
    """Verify and map the request in the attached descriptor (a memfd made by the manager)."""

    ref: int


# --- manager -> monitor -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ManagerReady:
    """The manager runs. Once."""

    version: str = text(64)


@dataclass(frozen=True, slots=True)
class StartEndpoint:
    """Start the user endpoint of the signed request in the attached descriptor. The descriptor is a
    sealed memfd: MessagePack of [request, signature]."""

    ref: int


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """Whether the relay link is up, for `mep status`."""

    state: str = text(32)
    detail: str = text(1024)


@dataclass(frozen=True, slots=True)
class StopAll:
    """The relay says that this endpoint is deleted: end its user endpoints."""

    reason: str = text(1024)


@dataclass(frozen=True, slots=True)
class StopEndpoint:
    """An administrator has the relay say that this endpoint is to stop, as `mep stop` would stop it. Once."""

    reason: str = text(1024)


# --- monitor -> manager -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapperEpoch:
    """The epoch that requests must carry from now on. The manager tells the relay in its next hello."""

    epoch: bytes = blob(16)


@dataclass(frozen=True, slots=True)
class StartAnswered:
    """The outcome of StartEndpoint `ref`: an Outcome, and for refusals a Refusal (or a code of the user
    endpoint's own), with text that may leave the host. `stage` is the name of the StartStage at which it failed, for
    the metrics; else empty."""

    ref: int
    outcome: str = text(32)
    uep_id: str = text(36)
    code: str = text(64)
    public: str = text(1024)
    correlation_id: str = text(64)
    incarnation: bytes = process_name()
    stage: str = field(default="", metadata={"cap": 32})


@dataclass(frozen=True, slots=True)
class StartBegun:
    """A keeper works on StartEndpoint `ref`: the mapping is done. StartAnswered follows."""

    ref: int


@dataclass(frozen=True, slots=True)
class EndpointEnded:
    """A user endpoint's process ended. `code` is IDLE, STOPPED or an error code."""

    uep_id: str = text(36)
    code: str = text(64)
    public: str = text(1024)
    correlation_id: str = text(64)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class EndpointRunning:
    """A user endpoint runs on this host: sent for each one after MapperEpoch, and after adoption."""

    uep_id: str = text(36)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class EndpointRevoked:
    """A user endpoint is being ended, because its owner may no longer have it. EndpointEnded follows."""

    uep_id: str = text(36)
    code: str = text(64)
    public: str = text(1024)
    correlation_id: str = text(64)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class EndpointAccount:
    """The account of a user endpoint's process: for the task records, and sent only if they are kept."""

    uid: int
    uep_id: str = text(36)
    local_user: str = text(32)
    incarnation: bytes = process_name()


@dataclass(frozen=True, slots=True)
class TaskLogFile:
    """Append task records to the attached descriptor from now on."""


@dataclass(frozen=True, slots=True)
class StartsAllowed:
    """A drain is over: have the relay ask again for waiting starts."""


@dataclass(frozen=True, slots=True)
class RecheckNow:
    """Configuration or mapping have changed: have every user endpoint re-checked soon."""


# --- keeper -> monitor ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskCaps:
    """The account exists and policy admits it: may this uid have one more user endpoint?"""

    uid: int


@dataclass(frozen=True, slots=True)
class Spawned:
    """exec worked: the user endpoint has this pid."""

    pid: int


@dataclass(frozen=True, slots=True)
class UepReady:
    """The user endpoint reports that it is configured and its engine runs."""


@dataclass(frozen=True, slots=True)
class UepEnded:
    """The start failed at `stage` (mep.boundary.errors.StartStage), or the user endpoint ended after it was ready
    (0). No process of it is left. `public` may leave the host, `detail` may not."""

    stage: int
    errno: int
    code: str = text(64)
    public: str = text(1024)
    detail: str = text(4096)


# Answers of a check of the account, each time that a keeper has made one.


@dataclass(frozen=True, slots=True)
class StillAdmitted:
    """The account of the user endpoint exists as it was, and policy admits it."""


@dataclass(frozen=True, slots=True)
class NoLongerAdmitted:
    """The account is gone, changed, locked, expired, or refused by policy; `detail` says which. The keeper ends its
    user endpoint."""

    detail: str = text(4096)


@dataclass(frozen=True, slots=True)
class NotChecked:
    """Whether the account may still be used can't be determined at the moment."""

    detail: str = text(4096)


# --- monitor -> keeper ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CapsGranted:
    """Go on."""


@dataclass(frozen=True, slots=True)
class StartDenied:
    """The account may have no further user endpoint: the limit is reached, it is banned, or it runs another person's.
    `public` may leave the host, `detail` may not."""

    code: str = text(64, _REFUSAL)
    public: str = text(1024)
    detail: str = text(4096)


@dataclass(frozen=True, slots=True)
class StopUserEndpoint:
    """End the user endpoint: SIGTERM, a grace period, then SIGKILL to every descendant."""

    grace_ms: int
    code: str = text(64)
    public: str = text(1024)


@dataclass(frozen=True, slots=True)
class CheckAccount:
    """Check the account within this time, and from then on, by the policy in the attached descriptor (a sealed memfd):
    account_check.AccountChecks."""

    within_ms: int


# --- administrator's command -> monitor (over RUN/admin/socket; the kernel names the peer) -----------------


@dataclass(frozen=True, slots=True)
class AdminList:
    """Show at most MAX_ADMIN_ROWS of each kind, user endpoints from the one after `after` (empty: the first) on."""

    after: str = text(36)


@dataclass(frozen=True, slots=True)
class AdminRestrictions:
    """Show at most MAX_ADMIN_ROWS drains and bans, in the order of account and kind: those after this one.

    Both empty: from the first on. AdminList shows the latest alone.
    """

    local_user: str = account(none=True)
    kind: str = text(16)


@dataclass(frozen=True, slots=True)
class AdminStop:
    """End the user endpoint `uep_id`, or all those of the account `local_user`. AdminDone follows their end."""

    uep_id: str = text(36, f"({UEP_ID})?")
    local_user: str = account(none=True)
    message: str = text(MAX_ADMIN_TEXT)


@dataclass(frozen=True, slots=True)
class AdminDrain:
    """Start nothing new, for everybody or (`local_user`) for one account, and let running user endpoints finish their
    tasks. With `refuse` 1, waiting tasks fail with `message`; otherwise they wait and show it."""

    refuse: int = flag()
    local_user: str = account(none=True)
    message: str = text(MAX_ADMIN_TEXT)


@dataclass(frozen=True, slots=True)
class AdminUndrain:
    """Take back the drain of everybody, or of `local_user`."""

    local_user: str = account(none=True)


@dataclass(frozen=True, slots=True)
class AdminBan:
    """Start nothing for this account under any name of its uid (-1: unknown), and end what it runs."""

    uid: int = field(metadata={"form": r"-1|\d+"})
    local_user: str = account()
    message: str = text(MAX_ADMIN_TEXT)


@dataclass(frozen=True, slots=True)
class AdminUnban:
    """Take back the ban of `local_user`."""

    local_user: str = account()


@dataclass(frozen=True, slots=True)
class AdminReload:
    """Read the configuration again, as at SIGHUP. AdminDone says what came of it."""


@dataclass(frozen=True, slots=True)
class AdminLog:
    """Open the endpoint's log for reading."""


# --- monitor -> administrator's command -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdminEndpoint:
    """One user endpoint. Times are milliseconds since the epoch; 0 is never. `figures` is the page that the user
    endpoint itself wrote (mep/boundary/figures.py), unread by the monitor; empty if there is none."""

    uid: int
    pid: int
    keeper_pid: int
    since_ms: int
    started_ms: int
    mapping_checked_ms: int
    account_checked_ms: int
    overdue: int
    account_overdue: int
    uep_id: str = text(36)
    local_user: str = text(32)
    state: str = text(32)
    identities: str = text(4096)
    correlation_id: str = text(64)
    figures: bytes = blob(MAX_FIGURES_BYTES)


@dataclass(frozen=True, slots=True)
class AdminRestriction:
    """A drain or ban that is in force; an empty `local_user` means everybody."""

    refuse: int
    by_uid: int
    since_ms: int
    kind: str = text(16)
    local_user: str = text(32)
    message: str = text(MAX_ADMIN_TEXT)


ENDED = "ended: "
"""Begins the detail of an AdminFailure that is the end of a user endpoint, and no failed start."""


@dataclass(frozen=True, slots=True)
class AdminFailure:
    """A start that came to nothing lately, or a user endpoint that was ended."""

    at_ms: int
    local_user: str = text(32)
    identities: str = text(4096)
    code: str = text(64)
    detail: str = text(1024)
    correlation_id: str = text(64)


@dataclass(frozen=True, slots=True)
class AdminLogFile:
    """The endpoint's log, in the attached descriptor, open for reading."""


@dataclass(frozen=True, slots=True)
class AdminDone:
    """The end of the answer. `count` says how many it concerned, `problem` why it was not done; with `more` 1, ask
    again after the last user endpoint, or the last drain or ban."""

    count: int
    more: int
    problem: str = text(1024)


# --- monitor -> manager and mapper --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End in good order: the endpoint is being stopped."""

    reason: str = text(256)


Message = (
    MapperReady | Mapped | NotMapped | MappingStatus | ReloadNeeded | MapRequest
    | ManagerReady | StartEndpoint | LinkStatus | StopAll | StopEndpoint
    | MapperEpoch | StartAnswered | EndpointEnded | EndpointRunning | AskCaps | Spawned | UepReady | UepEnded
    | CapsGranted | StartDenied | StopUserEndpoint | Shutdown | StillMapped | NoLongerMapped
    | EndpointAccount | TaskLogFile | StartBegun | EndpointRevoked | RecheckNow | StillAdmitted | NoLongerAdmitted
    | NotChecked | StartsAllowed | CheckAccount
    | AdminList | AdminRestrictions | AdminStop | AdminDrain | AdminUndrain | AdminBan | AdminUnban | AdminReload
    | AdminLog | AdminEndpoint | AdminRestriction | AdminFailure | AdminLogFile | AdminDone
)  # fmt: skip

WIRE_TYPES: dict[int, type[Message]] = {
    1: MapperReady, 2: Mapped, 3: NotMapped, 4: MappingStatus, 5: StillMapped, 6: NoLongerMapped, 7: ReloadNeeded,
    10: MapRequest,
    20: ManagerReady, 21: StartEndpoint, 22: LinkStatus, 23: StopAll, 25: StopEndpoint,
    30: MapperEpoch, 31: StartAnswered, 32: EndpointEnded, 33: EndpointRunning, 34: EndpointRevoked, 35: RecheckNow,
    36: EndpointAccount, 37: TaskLogFile, 39: StartBegun,
    40: AskCaps, 41: Spawned, 42: UepReady, 45: UepEnded,
    50: CapsGranted, 52: StopUserEndpoint, 54: CheckAccount, 55: StartDenied,
    60: Shutdown, 61: StartsAllowed,
    70: StillAdmitted, 71: NoLongerAdmitted, 72: NotChecked,
    80: AdminList, 81: AdminStop, 82: AdminDrain, 83: AdminUndrain, 84: AdminBan, 85: AdminUnban, 86: AdminReload,
    87: AdminLog, 88: AdminRestrictions,
    90: AdminEndpoint, 91: AdminRestriction, 92: AdminFailure, 93: AdminLogFile, 94: AdminDone,
}  # fmt: skip
"""The first byte of a frame. Numbers are never reused, because keepers outlive an upgrade of the monitor."""

DESCRIPTORS: dict[type[Message], int] = {
    Mapped: 1, MapRequest: 1, StartEndpoint: 1, TaskLogFile: 1, CheckAccount: 1, AdminLogFile: 1,
}  # fmt: skip
"""Number of descriptors attached to a message, for those with any. Any other number is a violation."""
