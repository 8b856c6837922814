"""What a user endpoint accepts of the tasks that come: functions, resources, and how things are serialized.

The relay has checked some of this before; here it is checked again, by what the site itself says. Nothing is loaded
or unpickled for it. Called by the user endpoint for each task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from mep_wire import messages
from mep_wire.errors import (
    FunctionNotAllowed,
    FunctionUnloadable,
    ResourceSpecInvalid,
    SerializerNotAllowed,
)
from user_endpoint.functions import Functions

Refusals = (FunctionNotAllowed, FunctionUnloadable, ResourceSpecInvalid, SerializerNotAllowed)
"""What `code_of` raises."""


class Serializers(Protocol):
    """What the site's template allows (mep_sdk.strategies.Allowed). Both raise SerializerNotAllowed."""

    def function(self, code: bytes) -> bytes:
        """Return the function in the ways that are allowed."""

    def arguments(self, payload: bytes) -> None:
        """Check the way in which arguments travel."""


class Admission(NamedTuple):
    """See the module. None for `allowed_functions` or `serializers` means any."""

    endpoint_id: str
    allowed_functions: frozenset[str] | None
    check_resources: Callable[[bytes], None]
    serializers: Serializers | None
    functions: Functions

    def code_of(self, task: messages.TaskItem) -> bytes:
        """Return the code that the task runs. Raises one of Refusals."""
        self.check_resources(task.resource_spec)
        if self.allowed_functions is not None and task.function_id not in self.allowed_functions:
            raise FunctionNotAllowed(endpoint_id=self.endpoint_id, function_id=task.function_id)
        code = self.functions.get(task.function_id)
        if code is None:
            raise FunctionUnloadable(reason="the relay sent the task without its function")
        if self.serializers is None:
            return code
        self.serializers.arguments(task.payload)
        return self.serializers.function(code)
