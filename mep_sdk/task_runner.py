"""Run one task: bytes in, bytes out. Called by every engine's worker.

The function is the person's own code and runs as the person; nothing it does, short of ending the process,
gets past `run_task`. Imports stay light: a worker that only runs plain functions imports neither
cloudpickle nor anything that holds a socket.
"""

from __future__ import annotations

import enum
import linecache
import os

import msgspec

from mep_sdk import encoding, serialize, task_output
from mep_sdk.foreign_code import attempt, clean, failure_text, type_name
from mep_sdk.function_serializer import LoadedFunction, load_function
from mep_sdk.process_limits import ProcessWatch
from mep_wire.errors import FunctionUnloadable, MepError, ResultTooLarge, ResultUnserializable, TaskFailed

_MAX_CACHED = 256
_OVERHEAD_BYTES = 64
_MAX_TEXT_CHARS = 8 * 1024
_OURS = ("mep_sdk.errors", "mep_wire.errors")
_processes = ProcessWatch()


class TaskStage(enum.Enum):
    """How far a task has come."""

    LOAD = 1
    CALL = 2
    RETURN = 3


class TaskOutcome(msgspec.Struct, frozen=True):
    """How a task ended. `code` is empty for success; then `payload` is the serialized value, else the serialized
    exception where there is one. `text` is what the person reads."""

    code: str
    text: str
    payload: bytes


keep_output = task_output.install
"""Have outcomes hold what tasks print. For a process that runs one task at a time, before the first."""
copy_output = task_output.copy_to
"""Pass on what the next task prints while it runs. For the same processes."""
wants_live_output = serialize.wants_live_output
"""Return whether the caller of a task with these arguments takes what it prints while it runs."""
FunctionCache = dict[bytes, LoadedFunction]
"""Functions that a worker has loaded, by their bytes. Pass the same one to every `run_task` of a worker."""


def run_task(
    function: bytes,
    payload: bytes,
    *,
    max_result_bytes: int,
    cache: FunctionCache | None = None,
    data_directory: str = "",
) -> TaskOutcome:
    """Call the serialized function with the serialized arguments and return how it ended. Never raises.

    Codes: "" (success), FUNCTION_UNLOADABLE, TASK_FAILED, RESULT_UNSERIALIZABLE, RESULT_TOO_LARGE, and
    DATA_CORRUPT or DATA_UNREADABLE for the arguments, and DATA_UNAVAILABLE. `max_result_bytes` bounds the serialized
    value: a larger one goes by reference where the user endpoint takes it in `data_directory`.
    The payload has the task's output too, if its caller takes it and this process keeps it (see `keep_output`): as
    much of its end as there is room for.
    """
    if not (serialize.wants_output(payload) and task_output.begin()):
        return _run(function, payload, max_result_bytes, cache, data_directory)
    outcome = _run(function, payload, max_result_bytes, cache, data_directory)
    output = task_output.end(max_result_bytes - len(outcome.payload) - _OVERHEAD_BYTES)
    if not any(output):
        return outcome
    return TaskOutcome(outcome.code, outcome.text, encoding.with_output(outcome.payload, output))


def _run(
    function: bytes, payload: bytes, max_result_bytes: int, cache: FunctionCache | None, data_directory: str
) -> TaskOutcome:
    stage, loaded = TaskStage.LOAD, None
    try:
        loaded = _load(function, cache)
        args, kwargs = serialize.load_arguments(payload)
        stage = TaskStage.CALL
        value = loaded.call(*args, **kwargs)
        stage = TaskStage.RETURN
        return _returned(value, max_result_bytes, serialize.result_ways_of(payload), data_directory)
    except BaseException as error:  # noqa: BLE001 - the person's code, SystemExit and KeyboardInterrupt included
        called = loaded if stage is TaskStage.CALL else None
        outcome, trouble = attempt(_described, stage, called, error, max_result_bytes)
        # To describe it calls the person's code as well.
        return outcome or TaskOutcome(TaskFailed.code, _undescribed(error, trouble), b"")


def _described(
    stage: TaskStage, called: LoadedFunction | None, error: BaseException, max_result_bytes: int
) -> TaskOutcome:
    return _not_run(stage, error) if called is None else _failed(called, error, max_result_bytes)


def _undescribed(error: BaseException, trouble: BaseException | None) -> str:
    return f"{type_name(error)}, and no more can be told of it: {failure_text(trouble or error)}"


def _load(function: bytes, cache: FunctionCache | None) -> LoadedFunction:
    if cache is None:
        return load_function(function)
    loaded = cache.get(function)
    if loaded is None:
        if len(cache) >= _MAX_CACHED:
            cache.clear()
        loaded = cache[function] = load_function(function)
    return loaded


def _returned(value: object, max_result_bytes: int, ways: list[str], data_directory: str) -> TaskOutcome:
    try:
        payload = serialize.serialize_result(value, ways, limit=max_result_bytes)
    except encoding.OverLimit:
        return TaskOutcome("", "", _by_reference(value, max_result_bytes, data_directory))
    if len(payload) <= max_result_bytes:
        return TaskOutcome("", "", payload)
    if payload[3:4] == encoding.JSON:
        raise ResultTooLarge(size=len(payload), limit=max_result_bytes)
    return TaskOutcome("", "", _by_reference(value, max_result_bytes, data_directory))


def _by_reference(value: object, max_result_bytes: int, data_directory: str) -> bytes:
    """Return the payload of a large value. Raises ResultTooLarge, ResultUnserializable, DataUnavailable."""
    from mep_sdk import data_files, data_pickles  # most workers never have one

    limit = data_files.result_limit(data_directory)
    if limit > max_result_bytes:
        try:
            payload = data_files.store_result(value, data_directory)
        except data_pickles.DataOverLimit:
            pass
        else:
            if len(payload) <= max_result_bytes:
                return payload
    size = data_pickles.size_of([value], local_by_value=False)
    raise ResultTooLarge(size=size, limit=max(limit, max_result_bytes))


def _not_run(stage: TaskStage, error: BaseException) -> TaskOutcome:
    """Return the outcome of a failure before or after the call itself."""
    if type(error).__module__ in _OURS and isinstance(error, MepError):
        return TaskOutcome(error.code, clean(error.text, _MAX_TEXT_CHARS), b"")
    # Modules that are imported, and values that pickle themselves, are the person's code too and may even exit.
    reason = failure_text(error)
    if isinstance(error, ImportError):
        from mep_sdk.version_mismatch import explain  # only a failure needs it

        reason += attempt(explain, error, "on the endpoint")[0] or ""
    named = FunctionUnloadable(reason=reason) if stage is TaskStage.LOAD else ResultUnserializable(reason=reason)
    return TaskOutcome(named.code, clean(named.text, _MAX_TEXT_CHARS), b"")


def _failed(loaded: LoadedFunction, error: BaseException, max_result_bytes: int) -> TaskOutcome:
    _show_source(loaded)
    limit, _ = attempt(_processes.explain, error)
    if isinstance(error, ImportError):
        from mep_sdk.version_mismatch import missing  # only a failure needs it

        limit = limit or attempt(missing, error)[0]
    if limit:
        attempt(BaseException.add_note, error, limit)  # it may be frozen, or have notes of another kind
    # A worker's frame of run_task is no news to the person: their own call comes first.
    data = serialize.serialize_exception(error, skip_frames=1, max_bytes=min(max_result_bytes, 1 << 20))
    text = failure_text(error)
    return TaskOutcome(TaskFailed.code, f"{text} - {limit}" if limit else text, data)


def _show_source(loaded: LoadedFunction) -> None:
    """Let tracebacks show the function's lines, which are in a file on the person's own machine."""
    sources = attempt(loaded.lines)[0] or ()
    for filename in {source.filename for source in sources}:
        if _readable(filename):
            continue
        lines: list[str] = []
        for source in sorted(each for each in sources if each.filename == filename):
            text, first = source.text.splitlines(keepends=True), source.first_line - 1
            lines += [""] * (first - len(lines))
            lines[first : first + len(text)] = text
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)


def _readable(filename: str) -> bool:
    """Whether the file can be read here. A directory that may not be entered is an answer, not an error."""
    try:
        return os.access(filename, os.R_OK)
    except ValueError:  # a name with a NUL in it, as code can be compiled with
        return False
