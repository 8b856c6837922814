"""Every refusal and failure that a person can meet, by a stable code.

An error's docstring is the sentence the person reads, with the error's own fields filled in; it says what
to do next. `detail` is for the administrator alone: it is logged where it arises and never leaves the host.
The same classes are raised by the SDK, answered by the relay's HTTP API (with `http_status`) and sent on
the link (as code and text).
"""

from __future__ import annotations

import uuid
from typing import ClassVar

from mep_wire.text import printable, printable_lines


class ComputeError(Exception):
    """Base of every error of MEP's. This and the next four have the names and modules of Globus Compute's."""


class SerdeError(ComputeError):
    """Something could not be made into bytes, or from bytes."""

    def __init__(self, reason: object = "") -> None:
        super().__init__(reason)

    @property
    def reason(self) -> str:
        """Why it could not."""
        fields: dict[str, object] = getattr(self, "fields", {})
        return str(fields.get("reason") or self.args[0])


class SerializationError(SerdeError):
    """Something could not be made into bytes."""


class DeserializationError(SerdeError):
    """Something could not be made from bytes."""


class TaskExecutionFailed(ComputeError):
    """A task did not succeed, and its function did not raise an exception that can be rebuilt here.

    `remote_data` says why, `completion_t` when (seconds since the epoch, as text), if that is known.
    """

    completion_t: str | None = None
    task_details: dict[str, object] | None = None

    def __init__(
        self, remote_data: str = "", completion_t: str | None = None, task_details: dict[str, object] | None = None
    ) -> None:
        self.remote_data = remote_data
        if completion_t is not None:
            self.completion_t = completion_t
        if task_details is not None:
            self.task_details = task_details
        super().__init__(remote_data)


class MepError(ComputeError):
    """An unexpected error occurred. Give the correlation id to the administrator."""

    code: ClassVar[str] = "MEP_ERROR"
    http_status: ClassVar[int] = 500
    authorization_parameters: dict[str, object] | None = None
    """What a new login must be like, where one would help: with the names of Globus Auth's requirements errors."""

    def __init__(
        self, *, text: str | None = None, detail: str = "", correlation_id: str | None = None, **fields: object
    ) -> None:
        self.fields = fields
        self.detail = detail
        self.correlation_id = correlation_id or str(uuid.uuid4())
        self.text = text if text is not None else _sentence(type(self)).format(**fields)
        super().__init__(self.text)

    def __str__(self) -> str:
        # Escaped for a terminal, since a peer may have written the text. The attributes hold it unescaped.
        return f"{printable_lines(self.text)} [{self.code}, correlation id {printable(self.correlation_id)}]"

    def __reduce__(self) -> tuple[object, ...]:
        return rebuild, (self.code, self.text, self.correlation_id)


def _sentence(cls: type[MepError]) -> str:
    return " ".join((cls.__doc__ or "").split())


# --- asking the relay -------------------------------------------------------------------------------


class TokenUnknown(MepError):
    """The access token is missing, unknown or revoked. Ask the relay's administrator for a new one."""

    code = "TOKEN_UNKNOWN"
    http_status = 401


class ScopeMissing(MepError):
    """This needs a token with the scope {scope}, and yours has {scopes}. Log in again and ask for that scope."""

    code = "SCOPE_MISSING"
    http_status = 403


class LoginRequired(MepError):
    """Your login does not meet the authentication policy {policy}: {reason}. Log in again: {remedy}."""

    code = "LOGIN_REQUIRED"
    http_status = 403


class PolicyRefused(MepError):
    """The authentication policy {policy} does not admit you: {reason}. Ask the administrators of {subject}."""

    code = "POLICY_REFUSED"
    http_status = 403


class IdentityUnusable(MepError):
    """The login at {provider} cannot be used here: {reason}. Tell the relay's administrator the correlation id."""

    code = "IDENTITY_UNUSABLE"
    http_status = 403


class LoginFailed(MepError):
    """The login at {provider} failed: {reason}. Try again; if it fails again, tell the relay's administrator."""

    code = "LOGIN_FAILED"
    http_status = 403


class ProviderUnavailable(MepError):
    """The identity provider {provider} cannot be used at the moment: {reason}. Try again in a moment."""

    code = "PROVIDER_UNAVAILABLE"
    http_status = 503


class EndpointForbidden(MepError):
    """Endpoint {endpoint_id} is another person's single-user endpoint. Use one of your own, or a multi-user one."""

    code = "ENDPOINT_FORBIDDEN"
    http_status = 403


class EndpointNotShared(MepError):
    """Endpoint {endpoint_id} is shared with certain people and groups, and you are not among them. Ask its owner."""

    code = "ENDPOINT_NOT_SHARED"
    http_status = 403


class EndpointLocked(MepError):
    """Endpoint {endpoint_id} takes no new tasks at the moment: {reason}. Ask its administrators when it will."""

    code = "ENDPOINT_LOCKED"
    http_status = 403


class HighAssurance(MepError):
    """Function {function_id} cannot run at endpoint {endpoint_id}: {reason}."""

    code = "HIGH_ASSURANCE"
    http_status = 403


class ClientForbidden(MepError):
    """The token's client may not {what}. Only the relay's administrator can permit it."""

    code = "CLIENT_FORBIDDEN"
    http_status = 403


class NotOwner(MepError):
    """Only the owner may change or remove {kind} {id}. Log in as the owner, or ask them to do it."""

    code = "NOT_OWNER"
    http_status = 403


class FunctionForbidden(MepError):
    """Function {function_id} was registered by another person and is not public. Ask them to make it public, or
    register your own copy."""

    code = "FUNCTION_FORBIDDEN"
    http_status = 403


class FunctionNotAllowed(MepError):
    """Endpoint {endpoint_id} runs only the functions its administrator lists, and {function_id} is not among them. Ask
    the administrator to add it."""

    code = "FUNCTION_NOT_ALLOWED"
    http_status = 403


class FunctionCodeChanged(MepError):
    """Endpoint {endpoint_id} has pinned the code of function {function_id}, and the relay sent other code under that id
    (sha256:{sha256}). Nothing was run. Tell the endpoint's administrator: the relay may have been tampered with."""

    code = "FUNCTION_CODE_CHANGED"
    http_status = 403


class EndpointNotFound(MepError):
    """There is no endpoint {endpoint_id}. Check the id, or whether it was deleted."""

    code = "ENDPOINT_NOT_FOUND"
    http_status = 404


class FunctionNotFound(MepError):
    """There is no function {function_id}. Register it first, or check the id."""

    code = "FUNCTION_NOT_FOUND"
    http_status = 404


class TaskNotFound(MepError):
    """There is no task {task_id} of yours. Check the id, or whether its record has passed its retention time."""

    code = "TASK_NOT_FOUND"
    http_status = 404


class TaskGroupNotFound(MepError):
    """There is no task group {task_group_id} of yours. Check the id, or whether its retention time has passed."""

    code = "TASK_GROUP_NOT_FOUND"
    http_status = 404


class TokenNotFound(MepError):
    """You have no token with the id {token_id}. GET /v3/tokens lists yours."""

    code = "TOKEN_NOT_FOUND"
    http_status = 404


class PolicyNotFound(MepError):
    """There is no authentication policy {policy_id}. Check the id, or whether it was deleted."""

    code = "POLICY_NOT_FOUND"
    http_status = 404


class GroupNotFound(MepError):
    """There is no group {group_id} that you can see. Check the id, or whether it was deleted."""

    code = "GROUP_NOT_FOUND"
    http_status = 404


class ClientNotFound(MepError):
    """There is no client {client_id} here. Check the id, or whether it was deleted."""

    code = "CLIENT_NOT_FOUND"
    http_status = 404


class ActionNotFound(MepError):
    """There is no action {action_id} that you can see here. Check the id, or whether it was released."""

    code = "ACTION_NOT_FOUND"
    http_status = 404


class ActionNotFinished(MepError):
    """The action {action_id} has not ended, and only an ended one can be released. Cancel it first, or wait."""

    code = "ACTION_NOT_FINISHED"
    http_status = 409


class RouteNotFound(MepError):
    """There is nothing at {method} {path}. GET /openapi.json lists all requests."""

    code = "ROUTE_NOT_FOUND"
    http_status = 404


class IdConflict(MepError):
    """The id {id} is already used for something else. Let the SDK choose the ids."""

    code = "ID_CONFLICT"
    http_status = 409


class NameReserved(MepError):
    """The {kind} {name} belonged to another person here, and things meant for them would go to you. Choose another
    name. The relay's administrator can free this one with `mep-relay name free`."""

    code = "NAME_RESERVED"
    http_status = 409


class PayloadTooLarge(MepError):
    """{what} has {size} bytes, more than the {limit} allowed. Put large data in a file or an object store and pass its
    name: see mep_sdk.data."""

    code = "PAYLOAD_TOO_LARGE"
    http_status = 413


class BodyInvalid(MepError):
    """The request body is not valid: {reason}"""

    code = "BODY_INVALID"
    http_status = 422


class UserConfigInvalid(MepError):
    """This endpoint does not accept your user_endpoint_config (mep-sdk describe ENDPOINT shows what it takes): {key}:
    {reason}"""

    code = "USER_CONFIG_INVALID"
    http_status = 422


class UserConfigReserved(MepError):
    """user_endpoint_config may not set {key}: the endpoint sets that variable itself. Use another name."""

    code = "USER_CONFIG_RESERVED"
    http_status = 422


class RelayBusy(MepError):
    """The relay has reached its limit for {what} requests. Try again in a moment."""

    code = "RELAY_BUSY"
    http_status = 503


class RateLimited(MepError):
    """This relay accepts {rate} {what} per second from one person. The SDK tries again by itself in {wait_s} s."""

    code = "RATE_LIMITED"
    http_status = 429


class PayloadLost(MepError):
    """The relay has lost the large arguments or the large result of this task. Submit it again."""

    code = "PAYLOAD_LOST"


class DataNotOffered(MepError):
    """This relay takes no data by reference. Write large data to a file that the site can read, or to an object store,
    and pass its name (mep_sdk.data does both)."""

    code = "DATA_NOT_OFFERED"
    http_status = 404


class DataNotFound(MepError):
    """The relay has no piece of data {digest} of yours: it was never uploaded, or no task needs it any more. Send it
    again."""

    code = "DATA_NOT_FOUND"
    http_status = 404


class DataMismatch(MepError):
    """The uploaded bytes do not have the SHA-256 {digest}, and nothing was stored. Send them again."""

    code = "DATA_MISMATCH"
    http_status = 422


class DataExpired(MepError):
    """The relay no longer has {count} pieces of these arguments: it keeps unused ones for {hours} h. Submit again."""

    code = "DATA_EXPIRED"
    http_status = 410


class DataUnavailable(MepError, TaskExecutionFailed):
    """The large arguments or the large result of this task could not be transferred: {reason}"""

    code = "DATA_UNAVAILABLE"


class StorageFull(MepError):
    """Your waiting tasks, kept results and functions take up {size} MB of your {limit} MB here. Delete some, or wait
    for tasks to end."""

    code = "STORAGE_FULL"
    http_status = 429


class TooManyTasks(MepError):
    """{count} tasks are already waiting and the limit is {limit}. Wait for some to end, then submit again."""

    code = "TOO_MANY_TASKS"
    http_status = 429


class RelayKeyChanged(MepError):
    """The relay at {url} presents a different {what} from the pinned one, and no earlier key has signed it: it is
    another relay, or one that was taken over. Pinned: {pinned}; presented: {offered}. The pin was not changed. Ask the
    relay's operator, by telephone for example, what `mep-relay key` prints there. If that is the presented
    fingerprint, run `mep register {name} --again --new-relay-key FINGERPRINT` with it."""

    code = "RELAY_KEY_CHANGED"
    http_status = 409


class RelayKeyUnexpected(MepError):
    """The relay at {url} presents the keys {offered}, not {expected} as given with --new-relay-key. The pin
    was not changed. Ask the relay's operator what `mep-relay key` prints there, and compare."""

    code = "RELAY_KEY_UNEXPECTED"
    http_status = 409


class RelayUnavailable(MepError):
    """The relay cannot do this at the moment: {reason}. The SDK tries again by itself."""

    code = "RELAY_UNAVAILABLE"
    http_status = 503


class RelayUnreachable(MepError):
    """The relay at {url} cannot be reached ({reason}); gave up after {waited_s} s. Check the address and your
    network."""

    code = "RELAY_UNREACHABLE"
    http_status = 503


class NotConfigured(MepError):
    """{what} is not set. {remedy}"""

    code = "NOT_CONFIGURED"
    http_status = 400


# --- starting a user endpoint -----------------------------------------------------------------------


class IdentityNotMapped(MepError):
    """This site maps none of your identities to a local account. Ask its administrators, with the correlation id."""

    code = "IDENTITY_NOT_MAPPED"
    http_status = 403


class IdentityAmbiguous(MepError):
    """Your linked identities map to several local accounts here. Ask the administrators, with the correlation id."""

    code = "IDENTITY_AMBIGUOUS"
    http_status = 403


class IdentityRemapped(MepError):
    """This site now maps you to another local account, and ended your process under the old one. Submit again."""

    code = "IDENTITY_REMAPPED"
    http_status = 403


class MappingUnconfirmed(MepError):
    """For too long, this site could not confirm which local account is yours, and it ended your process. Submit
    again."""

    code = "MAPPING_UNCONFIRMED"
    http_status = 403


class AccountRefused(MepError):
    """This site's policy does not admit you. Ask its administrators, with the correlation id."""

    code = "ACCOUNT_REFUSED"
    http_status = 403


class NotAdmittedNow(MepError):
    """This site does not admit you at the moment: {reason}. Your tasks wait."""

    code = "NOT_ADMITTED_NOW"
    http_status = 503


class AccountShared(MepError):
    """This site lets only one person at a time use an account, and another person is using yours. Try again later."""

    code = "ACCOUNT_SHARED"
    http_status = 403


class AccountBanned(MepError):
    """This site's administrators have blocked you: {reason}. Ask them, with the correlation id."""

    code = "ACCOUNT_BANNED"
    http_status = 403


class EndpointDraining(MepError):
    """This site starts no new processes at the moment: {reason}. Your tasks wait."""

    code = "ENDPOINT_DRAINING"
    http_status = 503


class MapperUnavailable(MepError):
    """This site cannot look up your local account at the moment. Try again later."""

    code = "MAPPER_UNAVAILABLE"
    http_status = 503


class StartRequestRefused(MepError):
    """The endpoint refused the relay's request to start your process ({reason}). Tell the administrators, with the
    correlation id."""

    code = "START_REQUEST_REFUSED"


class StartRequestStale(MepError):
    """The endpoint refused the relay's request to start your process as out of date ({reason}). The clocks of relay and
    site may differ: tell the administrators."""

    code = "START_REQUEST_STALE"


class StartFailed(MepError):
    """The site could not start your process (at stage {stage}). Tell its administrators, with the correlation id."""

    code = "START_FAILED"


class StartInterrupted(MepError):
    """Your process at the site was ended while it was starting ({reason}). If it happens again, tell the
    administrators."""

    code = "START_INTERRUPTED"


class UserEndpointUnstable(MepError):
    """The task was not started: your processes at the site ended before they could take it. {reason}"""

    code = "USER_ENDPOINT_UNSTABLE"


class StartTimeout(MepError):
    """Your process at the site was not ready within {seconds} s. Tell its administrators, with the correlation id."""

    code = "START_TIMEOUT"


class UserEndpointSilent(MepError):
    """Your process at the site is running but has not reached the relay for {seconds} s. Tell the site's
    administrators."""

    code = "USER_ENDPOINT_SILENT"


class SiteBusy(MepError):
    """The site is running as many user endpoints as it allows ({limit}). Your tasks wait until one ends."""

    code = "SITE_BUSY"
    http_status = 503


class PersonLimit(MepError):
    """You are running as many user endpoints as this site allows one person ({limit}). Your tasks wait until one
    ends."""

    code = "PERSON_LIMIT"
    http_status = 503


class AuditUnavailable(MepError):
    """The site cannot write its audit log at the moment, and starts nothing without it. Your tasks wait."""

    code = "AUDIT_UNAVAILABLE"
    http_status = 503


class EndpointMisconfigured(MepError):
    """The endpoint is misconfigured; your request is not at fault. Tell its administrators, with the correlation id."""

    code = "ENDPOINT_MISCONFIGURED"


class HomeUnusable(MepError):
    """Your home directory at the site cannot hold the process's files: {reason}"""

    code = "HOME_UNUSABLE"


class EndpointDeleted(MepError):
    """Endpoint {endpoint_id} was deleted while the task was waiting. Submit it to another endpoint."""

    code = "ENDPOINT_DELETED"


class EndpointOffline(MepError):
    """Endpoint {endpoint_id} has no link to the relay: it is not running, or its network is down. Nothing was
    stopped."""

    code = "ENDPOINT_OFFLINE"
    http_status = 409


class LinkMessageInvalid(MepError):
    """A message on the endpoint link cannot be understood: {reason}"""

    code = "LINK_MESSAGE_INVALID"


class JoinRefused(MepError):
    """The relay does not accept this user endpoint's join token: it is unknown, used or expired."""

    code = "JOIN_REFUSED"


class HelloNeeded(MepError):
    """The relay does not know this link. Say hello (or join) first: the relay may have been restarted."""

    code = "HELLO_NEEDED"


class LinkForbidden(MepError):
    """This key may not speak for {what} on the endpoint link."""

    code = "LINK_FORBIDDEN"


class ProtocolMismatch(MepError):
    """The peer speaks version {theirs} of the link protocol and this relay {ours}. Upgrade the older of the two."""

    code = "PROTOCOL_MISMATCH"


# --- running a task ---------------------------------------------------------------------------------


class TaskFailed(MepError, TaskExecutionFailed):
    """The task raised an exception on the endpoint."""

    code = "TASK_FAILED"


class ResourceSpecInvalid(MepError):
    """The resource_specification cannot be used: {reason}."""

    code = "RESOURCE_SPEC_INVALID"


class FunctionUnloadable(MepError, DeserializationError, TaskExecutionFailed):
    """The function cannot be loaded on the endpoint: {reason}"""

    code = "FUNCTION_UNLOADABLE"


class ResultUnserializable(MepError, SerializationError, TaskExecutionFailed):
    """The function returned something that cannot be serialized: {reason}"""

    code = "RESULT_UNSERIALIZABLE"


class ResultTooLarge(MepError, TaskExecutionFailed):
    """The result has {size} bytes, more than the {limit} allowed. Return the path of a file, or a reference: see
    mep_sdk.data."""

    code = "RESULT_TOO_LARGE"


class OutOfMemory(MepError, TaskExecutionFailed):
    """Your process at the site ran out of memory ({limit}). Use less, or ask its administrators."""

    code = "OUT_OF_MEMORY"


class TooManyProcesses(MepError, TaskExecutionFailed):
    """Your process at the site reached its limit of processes and threads ({limit}). Start fewer."""

    code = "TOO_MANY_PROCESSES"


class WorkerLost(MepError, TaskExecutionFailed):
    """The worker process that ran the task died: {reason}"""

    code = "WORKER_LOST"


class UserEndpointLost(MepError, TaskExecutionFailed):
    """The user endpoint that ran the task ended before the task did: {reason}"""

    code = "USER_ENDPOINT_LOST"


class EngineFailed(MepError, TaskExecutionFailed):
    """The endpoint's engine cannot run tasks: {reason}"""

    code = "ENGINE_FAILED"


class WalltimeExceeded(MepError, TaskExecutionFailed):
    """The task ran longer than its walltime of {walltime_s} s and was stopped. Submit it again with a longer one."""

    code = "WALLTIME_EXCEEDED"


class WalltimeTooLong(MepError, TaskExecutionFailed):
    """The task's walltime of {walltime_s} s is longer than the blocks here allow: {reason}. Use a shorter walltime, or
    longer blocks."""

    code = "WALLTIME_TOO_LONG"


class SerializerNotAllowed(MepError, TaskExecutionFailed):
    """The endpoint does not accept the way in which the {what} was serialized ({given}). It accepts: {accepted}."""

    code = "SERIALIZER_NOT_ALLOWED"
    http_status = 422


class TaskCancelled(MepError, TaskExecutionFailed):
    """The task was cancelled."""

    code = "TASK_CANCELLED"


class DependencyFailed(MepError, TaskExecutionFailed):
    """The task was not run because it needs the result of a task that did not succeed: {reason}"""

    code = "DEPENDENCY_FAILED"


class DependencyRefused(MepError, TaskExecutionFailed):
    """The relay cannot pass the result of task {task_id} to this task: {reason}. Pass that task's result() instead."""

    code = "DEPENDENCY_REFUSED"
    http_status = 409


class TaskExpired(MepError, TaskExecutionFailed):
    """The task did not finish before its deadline."""

    code = "TASK_EXPIRED"


REVOCATIONS = frozenset(
    {
        IdentityNotMapped.code, IdentityAmbiguous.code, IdentityRemapped.code, MappingUnconfirmed.code,
        AccountRefused.code, AccountBanned.code,
    }
)  # fmt: skip
"""Codes with which a user endpoint is ended because its person may not have it any more."""


def _all_subclasses(base: type[MepError]) -> list[type[MepError]]:
    direct = base.__subclasses__()
    return direct + [deep for child in direct for deep in _all_subclasses(child)]


def by_code() -> dict[str, type[MepError]]:
    """Return every declared error by its code. A person's own subclasses of MepError are not among them."""
    classes: list[type[MepError]] = [MepError, *_all_subclasses(MepError)]
    return {cls.code: cls for cls in classes if cls.__module__ in ("mep_wire.errors", "mep_sdk.errors")}


def rebuild(code: str, text: str, correlation_id: str | None = None) -> MepError:
    """Return the error that a peer sent as code and text; a plain MepError where the code is unknown."""
    return by_code().get(code, MepError)(text=text, correlation_id=correlation_id)
