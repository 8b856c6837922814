"""Errors that arise in the SDK itself; those that the relay or an endpoint answers are in mep_wire.errors."""

from __future__ import annotations

from typing import ClassVar

from mep_wire import errors as wire_errors
from mep_wire.errors import MepError
from mep_wire.text import printable_lines

ComputeError = wire_errors.ComputeError
SerdeError = wire_errors.SerdeError
SerializationError = wire_errors.SerializationError
DeserializationError = wire_errors.DeserializationError
TaskExecutionFailed = wire_errors.TaskExecutionFailed
DependencyFailed = wire_errors.DependencyFailed
MaxResultSizeExceeded = wire_errors.ResultTooLarge
"""With TaskPending and VersionMismatch: the errors of Globus Compute's SDK."""


class FunctionUnserializable(MepError, SerializationError):
    """Function {name} cannot be sent to an endpoint: {reason}"""

    code = "FUNCTION_UNSERIALIZABLE"
    http_status = 422


class ArgumentsUnserializable(MepError, SerializationError):
    """The arguments of {name} cannot be sent to an endpoint: {reason}"""

    code = "ARGUMENTS_UNSERIALIZABLE"
    http_status = 422


class DataCorrupt(MepError, DeserializationError):
    """The serialized {what} is damaged: {reason}"""

    code = "DATA_CORRUPT"


class DataUnreadable(MepError, DeserializationError):
    """The {what} cannot be read {where}: {reason}"""

    code = "DATA_UNREADABLE"


class RemoteError(MepError, TaskExecutionFailed):
    """The task raised {type_name} on the endpoint, which cannot be rebuilt here: {message}"""

    code = "REMOTE_ERROR"
    type_name: str
    """Qualified name of the exception's class on the endpoint."""
    remote_traceback: str
    """The traceback as the endpoint printed it."""

    def __init__(
        self,
        *,
        type_name: str = "",
        message: str = "",
        remote_traceback: str = "",
        text: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        self.type_name, self.remote_traceback = type_name, remote_traceback
        super().__init__(text=text, correlation_id=correlation_id, type_name=type_name, message=message)
        self.remote_data = remote_traceback or self.text


class RemoteTraceback(Exception):
    """Stands as `__cause__` of an exception that was raised on an endpoint; its text is the traceback there."""

    code: ClassVar[str] = "REMOTE_TRACEBACK"

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{printable_lines(self.text)}"""'


class TaskPending(MepError):
    """Task {task_id} has not ended yet: it is {status}."""

    code = "TASK_PENDING"
    http_status = 409


class InsecureRelay(MepError):
    """{url} is not encrypted, and your token would travel in the clear. Use https, or pass allow_insecure=True."""

    code = "INSECURE_RELAY"
    http_status = 400


class SettingsFileUnsafe(MepError):
    """{path} holds a token and other people can read it. Run: chmod 600 {path}"""

    code = "SETTINGS_FILE_UNSAFE"
    http_status = 400


class ProfileUnknown(MepError):
    """There is no login called {name} on this machine (known: {known}). Run: mep-sdk login --profile {name}"""

    code = "PROFILE_UNKNOWN"
    http_status = 400


class EndpointAmbiguous(MepError):
    """{count} endpoints are called {name}: {found}. Use an id, or OWNER/NAME."""

    code = "ENDPOINT_AMBIGUOUS"
    http_status = 400


class LoginRefused(MepError):
    """The login to {url} did not succeed: {reason}"""

    code = "LOGIN_REFUSED"
    http_status = 401


class LoginOver(MepError):
    """The login to {url} is over: {reason} Run: mep-sdk login --profile {profile}"""

    code = "LOGIN_OVER"
    http_status = 401


class RelayAnswerInvalid(MepError):
    """{url} did not answer as a relay does: {reason}. Check the address, and any proxy on the way."""

    code = "RELAY_ANSWER_INVALID"
    http_status = 502


class ProxyUnsupported(MepError):
    """The proxy {proxy}, which the environment names, cannot be used: {reason}. Correct https_proxy, http_proxy or
    all_proxy, or name the relay's host in no_proxy."""

    code = "PROXY_UNSUPPORTED"
    http_status = 400


class CaBundleUnusable(MepError):
    """The certificate authorities that {variable} names cannot be read from {path}: {reason}. Correct the variable."""

    code = "CA_BUNDLE_UNUSABLE"
    http_status = 400


class DataMissing(MepError, TaskExecutionFailed):
    """{key} is not in {store}: it was removed, or this machine sees another place by that name."""

    code = "DATA_MISSING"
    http_status = 404


class DataDamaged(MepError, TaskExecutionFailed):
    """{key} in {store} no longer has the bytes that were put there, so it is not loaded. Remove it and put it again."""

    code = "DATA_DAMAGED"


class StoreUnavailable(MepError, TaskExecutionFailed):
    """{store} cannot be used: {reason}"""

    code = "STORE_UNAVAILABLE"
    http_status = 503


class ForkedExecutor(MepError):
    """This Executor was made before the process forked and works only in the parent. Make a new one here."""

    code = "FORKED_EXECUTOR"


class RelayAnswerMissing(MepError):
    """Shutdown gave up on {count} tasks: {url} has not been reachable for {waited_s} s.
    The tasks go on. Once the relay is back, Executor(task_group_id="{task_group_id}").reload_tasks() gets the results.
    """

    code = "RELAY_ANSWER_MISSING"
    http_status = 503


class VersionMismatch(MepError):
    """{part} {version} is older than {least}, the oldest that the relay at {url} works with. Upgrade it."""

    code = "VERSION_MISMATCH"


class NotOffered(MepError):
    """MEP does not have {what}: {instead}"""

    code = "NOT_OFFERED"
    http_status = 501


class MpiUnavailable(MepError, TaskExecutionFailed):
    """This endpoint's engine runs no MPI tasks: it has no launcher. Use an endpoint with an MPI engine."""

    code = "MPI_UNAVAILABLE"


def public() -> dict[str, type[Exception]]:
    """Return every error that a script can meet, by its name."""
    found = {**vars(wire_errors), **globals()}
    return {name: each for name, each in found.items() if isinstance(each, type) and issubclass(each, Exception)}
