"""Errors that arise in the SDK itself; those that the relay or an endpoint answers are in mep_wire.errors."""

from __future__ import annotations

from typing import ClassVar

from mep_wire.errors import MepError


class FunctionUnserializable(MepError):
    """Function {name} cannot be sent to an endpoint: {reason}"""

    code = "FUNCTION_UNSERIALIZABLE"
    http_status = 422


class ArgumentsUnserializable(MepError):
    """The arguments of {name} cannot be sent to an endpoint: {reason}"""

    code = "ARGUMENTS_UNSERIALIZABLE"
    http_status = 422


class DataCorrupt(MepError):
    """The serialized {what} is damaged: {reason}"""

    code = "DATA_CORRUPT"


class DataUnreadable(MepError):
    """The serialized {what} cannot be read here: {reason}"""

    code = "DATA_UNREADABLE"


class RemoteError(MepError):
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


class RemoteTraceback(Exception):
    """Stands as `__cause__` of an exception that was raised on an endpoint; its text is the traceback there."""

    code: ClassVar[str] = "REMOTE_TRACEBACK"

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
