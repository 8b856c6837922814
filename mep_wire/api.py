"""Bodies of the relay's HTTP API and of its result stream: one struct each, JSON and MessagePack alike.

Routes and shapes follow Globus Compute's public web API (v2 and v3), so that clients of that API can be
pointed at a relay. Fields that are this project's own say so. Serialized functions, arguments and results
are opaque: bytes in MessagePack; in JSON a string, taken as its UTF-8 bytes, or as base64 after `b64:`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Annotated, Any

import msgspec

from mep_wire.identity import Identity
from mep_wire.struct_info import build_struct_info

B64_PREFIX = "b64:"
MSGPACK = "application/msgpack"
JSON = "application/json"


def opaque_to_text(data: bytes) -> str:
    """Return how opaque bytes stand in JSON: as they are where they are UTF-8, else base64 after `b64:`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return B64_PREFIX + b64encode(data).decode()
    return text if not text.startswith(B64_PREFIX) else B64_PREFIX + b64encode(data).decode()


def opaque_from_text(text: str) -> bytes:
    """Return the bytes that `opaque_to_text` wrote. Raises ValueError for bad base64."""
    return b64decode(text[len(B64_PREFIX) :], validate=True) if text.startswith(B64_PREFIX) else text.encode()


Opaque = Annotated[Any, msgspec.Meta(extra_json_schema={"type": "string"})]
"""In a body: bytes (MessagePack) or text (JSON). msgspec has no union of the two: the code that decodes a
body turns each into bytes with `opaque_bytes`."""


def opaque_bytes(value: object) -> bytes:
    """Return the bytes of an opaque field as decoded. Raises ValueError for anything but bytes or good text."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return opaque_from_text(value)
    raise ValueError(f"expected text or bytes, got {type(value).__name__}")


class FunctionBody(msgspec.Struct, kw_only=True):
    """POST /v3/functions (also under the names of v2)."""

    function_name: str
    function_code: Opaque
    description: str | None = None
    entry_point: str | None = None
    container_uuid: str | None = None
    group: str | None = None
    """A group of the relay's, or PROVIDER:GROUP. Its people may run it too."""
    ha_endpoint_id: str | None = None
    """The high-assurance endpoint that it is bound to: it runs there alone."""
    public: bool = False
    meta: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class FunctionAnswer(msgspec.Struct, kw_only=True):
    """The answer to POST /v3/functions."""

    function_uuid: str


class FunctionDigestsBody(msgspec.Struct, kw_only=True):
    """POST /v3/functions/digests. This project's own."""

    function_ids: list[str]


class FunctionDigestsAnswer(msgspec.Struct, kw_only=True):
    """The answer to POST /v3/functions/digests; unknown and deleted functions are left out."""

    digests: dict[str, str]
    """SHA-256 of a function's code, 64 hexadecimal digits, by function id."""


class SubmitBody(msgspec.Struct, kw_only=True):
    """POST /v3/endpoints/ID/submit: argument lists by function id."""

    tasks: dict[str, list[Opaque]]
    task_group_id: str | None = None
    create_queue: bool = False
    user_runtime: dict[str, Any] | None = None
    user_endpoint_config: dict[str, Any] | None = None
    resource_specification: dict[str, Any] | None = None
    result_serializers: list[str] | None = None
    task_ids: dict[str, list[str]] | None = None
    """This project's own: ids chosen by the client (UUIDv7), which make a repeated submission harmless."""
    walltime_s: float | None = None
    """This project's own: seconds after which a worker ends the task."""
    max_attempts: int | None = None
    """MEP only: how often a task may be begun if its worker or user endpoint dies. Default: the endpoint's."""
    deadline: float | None = None
    """This project's own: seconds since the epoch, by the relay's clock, at which an unfinished task expires."""
    deadline_s: float | None = None
    """This project's own: the same in seconds from when the relay takes the submission; the earlier of both counts."""
    priority: int = 0
    """This project's own: the order among one person's tasks for one user endpoint, higher first; from -5 to 5."""
    depends_on: dict[str, list[str]] | None = None
    """MEP only: by the id of a task in `task_ids`, the person's tasks at this endpoint that it waits for, and the
    results of which it is sent with. For an endpoint of which an answer has said `holds_tasks`."""
    pieces: dict[str, list[str]] | None = None
    """This project's own: for arguments by reference, the SHA-256 of their pieces in hexadecimal digits, by task id.
    Each was uploaded before (PUT /v3/data/DIGEST)."""


class SubmitAnswer(msgspec.Struct, kw_only=True):
    """The answer to a submission: everything in it is on the relay's disk."""

    request_id: str
    task_group_id: str
    endpoint_id: str
    tasks: dict[str, list[str]]
    worker_python: str = ""
    """This project's own: the Python that runs these tasks, e.g. 3.12.1, where the user endpoint runs and has said."""
    holds_tasks: bool = False
    """MEP only: whether `depends_on` may be used with this endpoint at the moment."""


class TaskStatus(msgspec.Struct, kw_only=True, omit_defaults=True):
    """GET /v2/tasks/ID, and the values of POST /v2/batch_status.

    `result` is set for success, `exception` for the other ends. `code`, `reason` and `correlation_id` are
    this project's own: why it failed, as a named error. `reason` may also say what a queued task waits for.
    `correlation_id` is that of the start that failed, else the task's own id: logs hold either.
    """

    task_id: str
    status: str
    result: Opaque | None = None
    exception: Opaque | None = None
    completion_t: str | None = None
    details: dict[str, Any] = {}
    code: str | None = None
    reason: str | None = None
    correlation_id: str | None = None
    waiting_since: float | None = None
    """This project's own: since when a task waits for `reason`, in seconds since the epoch by the relay's clock. Its
    `code` and `reason` are then those of mep_wire.waits."""


class BatchStatusBody(msgspec.Struct, kw_only=True):
    """POST /v2/batch_status."""

    task_ids: list[str]


class BatchStatusAnswer(msgspec.Struct, kw_only=True):
    """The answer to POST /v2/batch_status: a status for each known id; unknown ids are in `missing`."""

    results: dict[str, TaskStatus]
    response: str = "batch"
    missing: list[str] = []
    withheld: list[str] = []
    """MEP only: ended tasks with results too large for this answer; request them again. Until then `results` lists
    them as still running, so that no client takes them for empty."""


class CancelBody(msgspec.Struct, kw_only=True):
    """POST /v3/tasks/cancel. This project's own."""

    task_ids: list[str]


class CancelAnswer(msgspec.Struct, kw_only=True):
    """The answer to POST /v3/tasks/cancel, by task id: those that are cancelled, those that a user endpoint was
    asked to stop, those that had ended before, and those that are no tasks of the person's."""

    cancelled: list[str]
    asked: list[str] = []
    ended: list[str] = []
    missing: list[str] = []


class DataLimits(msgspec.Struct, kw_only=True):
    """GET /v3/data: whether and how arguments and results go by reference. This project's own."""

    max_payload_bytes: int
    """Largest arguments in a submission."""
    max_data_bytes: int
    """Largest arguments by reference; 0: none are."""
    piece_bytes: int
    """Largest piece."""
    keep_s: float
    """How long an uploaded piece is kept that no task refers to."""


class PiecesBody(msgspec.Struct, kw_only=True):
    """POST /v3/data/missing. This project's own."""

    digests: list[str]


class PiecesAnswer(msgspec.Struct, kw_only=True):
    """The answer to POST /v3/data/missing: those that are to be uploaded. The others are kept on for `keep_s`."""

    missing: list[str]


class PieceAnswer(msgspec.Struct, kw_only=True):
    """The answer to PUT /v3/data/DIGEST: the piece is on the relay's disk."""

    digest: str
    size: int


class TaskGroupAnswer(msgspec.Struct, kw_only=True):
    """GET /v2/taskgroup/ID."""

    taskgroup_id: str
    tasks: list[dict[str, str]]
    """One `{"id": ...}` a task, in order of submission."""


class OwnGroup(msgspec.Struct, kw_only=True):
    """A task group in a person's list."""

    taskgroup_id: str
    tasks: int
    more: bool = False
    """Whether it has more tasks than were counted."""
    first_submitted_t: float | None = None
    last_submitted_t: float | None = None
    """When its first and its last counted task came: seconds since the epoch."""


class OwnGroupsAnswer(msgspec.Struct, kw_only=True):
    """GET /v3/taskgroups."""

    taskgroups: list[OwnGroup]
    before: str | None = None
    """The query's `before` for the next ones; null at the end."""


class OwnTaskInfo(msgspec.Struct, kw_only=True):
    """A task in a person's list."""

    task_id: str
    taskgroup_id: str
    status: str
    endpoint_id: str | None = None
    function_id: str | None = None
    submitted_t: float
    ended_t: float | None = None


class OwnTasksAnswer(msgspec.Struct, kw_only=True):
    """GET /v3/tasks."""

    tasks: list[OwnTaskInfo]
    after: str | None = None
    """The query's `after` for the next ones; null at the end."""


class RegisterBody(msgspec.Struct, kw_only=True):
    """POST /v3/endpoints and PUT /v3/endpoints/ID. The two keys are this project's own."""

    endpoint_name: str
    display_name: str | None = None
    endpoint_uuid: str | None = None
    metadata: dict[str, Any] | None = None
    multi_user: bool = False
    public: bool = False
    allowed_functions: list[str] | None = None
    authentication_policy: str | None = None
    subscription_uuid: str | None = None
    high_assurance: bool = False
    admins: list[str] | None = None
    user_config_schema: dict[str, Any] | None = None
    link_public_key: Opaque = b""
    """The manager's CURVE public key: 32 bytes, or 40 characters of Z85 in JSON."""
    unseal_public_key: Opaque = b""
    """The mapper's X25519 public key for HPKE: 32 bytes, or 64 hexadecimal digits in JSON."""


class EarlierRelayKeys(msgspec.Struct, kw_only=True):
    """A pair of keys that the relay had before (mep_wire.relay_keys). All in hexadecimal digits."""

    signing_public_key: str
    link_public_key: str
    signature: str
    """By this pair's signing key, over the pair that followed."""


class RegisterAnswer(msgspec.Struct, kw_only=True):
    """The answer to an endpoint's registration: what the endpoint pins."""

    endpoint_id: str
    link_address: str
    link_public_key: str
    """The relay's CURVE public key, 64 hexadecimal digits."""
    signing_public_key: str
    """The relay's Ed25519 public key, 64 hexadecimal digits."""
    owner: list[Identity]
    """The identity set of who registered it: the only one that a single-user endpoint accepts."""
    warnings: list[str] = []
    earlier_keys: list[EarlierRelayKeys] = []
    """The pairs before the present one, oldest first: an endpoint that pinned one of them can follow the signatures."""


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """The body of every answer that is not a success."""

    reason: str
    code: str
    http_status_code: int
    correlation_id: str
    status: str = "Failed"
    error_args: list[str] = []
    authorization_parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    """What a new login must be like, where one would help (docs/relay-login.md)."""


# --- the result stream: WebSocket /v3/stream, MessagePack in binary frames ----------------------------


class Subscribe(msgspec.Struct, kw_only=True, tag=True):
    """Client to relay, first frame: stream the ends of this task group's tasks after `cursor` (0: all)."""

    task_group_id: str
    cursor: int = 0
    output: bool = False
    """Whether StreamOutput is wanted too. A relay of a version before has none to send."""


class StreamedResult(msgspec.Struct, frozen=True, array_like=True):
    """How one task ended. `state` is a mep_wire.states.TaskState; `payload` the serialized value for
    success, else the serialized exception where there is one."""

    task_id: str
    state: int
    code: str
    text: str
    payload: bytes
    correlation_id: str = ""


class StreamBatch(msgspec.Struct, kw_only=True, tag=True):
    """Relay to client: some tasks ended. Asking again from `cursor` gives only what came later."""

    cursor: int
    results: list[StreamedResult]


class StreamedOutput(msgspec.Struct, frozen=True, array_like=True):
    """Output of a running task: see mep_wire.messages.PrintedItem."""

    task_id: str
    attempt: int
    stream: int
    position: int
    data: bytes


class StreamOutput(msgspec.Struct, kw_only=True, tag=True):
    """Relay to client, where it is wanted: some tasks have printed. Nothing repeats it."""

    output: list[StreamedOutput]


class StreamRefused(msgspec.Struct, kw_only=True, tag=True):
    """Relay to client, before it closes the stream: why."""

    code: str
    text: str


StreamFrame = StreamBatch | StreamOutput | StreamRefused
"""Everything that the relay may send on the result stream (liveness is WebSocket's own ping)."""

build_struct_info(__name__)

_error_from_msgpack = msgspec.msgpack.Decoder(ErrorAnswer)
_error_from_json = msgspec.json.Decoder(ErrorAnswer)


def decode_error(body: bytes, content_type: str) -> ErrorAnswer:
    """Return the error in an answer's body. Raises msgspec.MsgspecError, UnicodeDecodeError."""
    decoder = _error_from_msgpack if content_type.startswith(MSGPACK) else _error_from_json
    return decoder.decode(body)
