"""Decides which tasks a user endpoint accepts, by their functions, resources and serialization.

The relay has checked some of this before; here it is checked again, by the site's own settings. Nothing is loaded
or unpickled for it. Called by the user endpoint for each task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from mep_wire import messages
from mep_wire.errors import (
    EndpointMisconfigured,
    FunctionCodeChanged,
    FunctionNotAllowed,
    FunctionUnloadable,
    ResourceSpecInvalid,
    SerializerNotAllowed,
)
from user_endpoint.function_store import Functions

Refusals = (
    FunctionCodeChanged, FunctionNotAllowed, FunctionUnloadable, ResourceSpecInvalid, SerializerNotAllowed,
)  # fmt: skip
"""The errors of `code_of`."""


class Serializers(Protocol):
    """The strategies that the site's template allows (mep_sdk.strategies.Allowed). Both raise SerializerNotAllowed."""

    def function(self, code: bytes) -> bytes:
        """Return the function in the ways that are allowed."""

    def arguments(self, payload: bytes) -> None:
        """Check the way in which arguments travel."""


class FunctionList(NamedTuple):
    """One list of functions. An id allows the pinned code alone, a digest allows its code under any id."""

    digests: frozenset[bytes]
    pins: Mapping[str, bytes]
    """SHA-256 by function id."""

    def excludes(self, function_id: str) -> bool:
        """Return whether no code at all may run under this id."""
        return not self.digests and function_id not in self.pins


def function_lists(
    by_endpoint: list[str] | None, by_template: list[str] | None, pins: Mapping[str, bytes]
) -> tuple[FunctionList, ...]:
    """Return the lists that must each allow a function; none where any may run.

    Raises EndpointMisconfigured for an id without a pin: the relay could serve any code under it.
    """
    return tuple(_function_list(entries, pins) for entries in (by_endpoint, by_template) if entries is not None)


def _function_list(entries: list[str], pins: Mapping[str, bytes]) -> FunctionList:
    from mep_wire.function_lists import digest_in, ids_in  # only sites with a list pay for it

    ids = ids_in(entries)
    if unpinned := [one for one in ids if one not in pins]:
        raise EndpointMisconfigured(
            detail=f"allowed_functions: no code is pinned for {unpinned[0]}: list it in config.yaml too and run "
            "`mep register NAME --again`, or list its code as sha256:DIGEST"
        )
    digests = frozenset(digest for entry in entries if (digest := digest_in(entry)) is not None)
    return FunctionList(digests, {one: pins[one] for one in ids})


class Admission(NamedTuple):
    """See the module. None for `serializers` means any, as does an empty tuple of lists."""

    endpoint_id: str
    allowed_functions: tuple[FunctionList, ...]
    check_resources: Callable[[bytes], None]
    serializers: Serializers | None
    functions: Functions

    def code_of(self, task: messages.TaskItem) -> bytes:
        """Return the code that the task runs. Raises one of Refusals."""
        self.check_resources(task.resource_spec)
        if any(one.excludes(task.function_id) for one in self.allowed_functions):
            raise FunctionNotAllowed(endpoint_id=self.endpoint_id, function_id=task.function_id)
        code = self.functions.get(task.function_id)
        if code is None:
            raise FunctionUnloadable(reason="the relay sent the task without its function")
        if self.allowed_functions:
            self._check_code(task.function_id, self.functions.digest(task.function_id, code))
        if self.serializers is None:
            return code
        for each in (task.payload, *task.inputs):
            self.serializers.arguments(each)
        return self.serializers.function(code)

    def _check_code(self, function_id: str, digest: bytes) -> None:
        """Check the code that was received. Raises FunctionNotAllowed or FunctionCodeChanged."""
        for one in self.allowed_functions:
            pinned = one.pins.get(function_id)
            if digest == pinned or digest in one.digests:
                continue
            if pinned is not None:
                raise FunctionCodeChanged(endpoint_id=self.endpoint_id, function_id=function_id, sha256=digest.hex())
            raise FunctionNotAllowed(endpoint_id=self.endpoint_id, function_id=function_id)
