"""How a task ended, as the relay tells it, to the value or the exception that the person gets."""

from __future__ import annotations

from collections.abc import Callable
from threading import current_thread, main_thread
from typing import Any

from mep_sdk import strategies
from mep_sdk.encoding import split_output
from mep_sdk.errors import DataCorrupt, DataUnreadable
from mep_sdk.foreign_code import attempt
from mep_sdk.serialize import load_exception, load_result
from mep_sdk.version_mismatch import note_own_version, with_own_version
from mep_wire import api
from mep_wire.data_frames import MAY_BE_DATA, is_data
from mep_wire.errors import FunctionUnloadable, MepError, TaskCancelled, TaskExpired, TaskFailed, rebuild
from mep_wire.states import API_STATUS, TaskState

_STATES = {word: state for state, word in API_STATUS.items()}
_LOOKS_UP_A_NAME = b"\x93"
"""pickle's STACK_GLOBAL, in every pickle that holds more than the built-in types."""
_WITHOUT_CODE = {TaskState.CANCELLED: TaskCancelled, TaskState.EXPIRED: TaskExpired}


def state_of(status: str) -> TaskState | None:
    """Return the state behind a status word of the HTTP API; None for a word this SDK does not know."""
    return _STATES.get(status)


def output_of(payload: bytes) -> tuple[str, str]:
    """Return what the task printed, to stdout and to stderr, where that came with its result."""
    try:
        stdout, stderr, _ = split_output(payload)
    except DataCorrupt:  # told where the result is read
        return "", ""
    return stdout.decode(errors="replace"), stderr.decode(errors="replace")


def _failure(result: api.StreamedResult, state: TaskState, *, only_json: bool) -> Exception:
    """Return the exception to raise for a task that did not succeed: the function's own, else a named error."""
    text = result.text
    if result.payload:
        try:
            _, _, payload = split_output(result.payload)
            if payload:
                error = load_exception(payload, unpickle=not only_json)
                if isinstance(error, ImportError):
                    attempt(note_own_version, error)  # a class of the person's may have notes of another kind
                return error
        except DataCorrupt as error:
            text = f"{text} ({error.text})"
    kind = _WITHOUT_CODE.get(state)
    if not result.code and kind is not None:
        return kind(correlation_id=_correlation_id(result))
    if result.code in (FunctionUnloadable.code, DataUnreadable.code):
        text = with_own_version(text)
    return rebuild(result.code or TaskFailed.code, text, _correlation_id(result))


def _correlation_id(result: api.StreamedResult) -> str:
    """Return the id that a log holds: of the start that failed, else the task's own."""
    return result.correlation_id or result.task_id


def runs_code_to_load(payload: bytes) -> bool:
    """Return whether a result may call code of the person's or of a library when it is loaded: it names a class or a
    function. True for a few plain ones too, and for one by reference, which is fetched first."""
    return _LOOKS_UP_A_NAME in payload or (payload[3:4] in MAY_BE_DATA and is_data(payload))


def settle(
    result: api.StreamedResult,
    load_by_reference: Callable[[bytes], Any] | None = None,
    *,
    only_json: bool = False,
) -> tuple[Any, Exception | None]:
    """Return (value, None) for a success that can be read here, else (None, exception). `only_json`: nothing of it is
    unpickled, since its caller asked for JSON and an endpoint may send anything."""
    try:
        state = TaskState(result.state)
    except ValueError:
        return None, MepError(
            text=f"Task {result.task_id} ended in a state that this SDK does not know: {result.state}."
        )
    if state is TaskState.SUCCESS:
        try:
            if only_json and (way := strategies.data_way(result.payload)) != strategies.JSON:
                raise DataUnreadable(what="result", where="here", reason=f"JSON was asked for, and {way} came")
            if result.payload[3:4] in MAY_BE_DATA and load_by_reference is not None and is_data(result.payload):
                return load_by_reference(result.payload), None
            return load_result(result.payload), None
        except MepError as error:
            if type(error.__cause__) is KeyboardInterrupt and current_thread() is main_thread():
                raise error.__cause__ from None  # the person's Ctrl-C during a long load, or as good as that
            return None, error
    return None, _failure(result, state, only_json=only_json)
