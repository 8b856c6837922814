"""Functions, arguments, results and exceptions as bytes, as the SDK sends them and workers return them.

The one place to import from for serialization. The formats are in encoding.py and function_serializer.py; the relay
never looks inside them.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import ArgumentsUnserializable, DataCorrupt, DataUnreadable, RemoteError, RemoteTraceback
from mep_sdk.function_serializer import LoadedFunction, load_function, serialize_function
from mep_wire.errors import MepError, ResultUnserializable
from mep_wire.text import printable_lines

__all__ = [
    "ExceptionRecord",
    "LoadedFunction",
    "load_arguments",
    "load_exception",
    "load_function",
    "load_result",
    "result_ways_of",
    "serialize_arguments",
    "serialize_exception",
    "serialize_function",
    "serialize_result",
]

_MAX_TRACEBACK_CHARS = 64 * 1024
_MAX_MESSAGE_CHARS = 8 * 1024


def serialize_arguments(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    name: str = "the function",
    local_by_value: bool = True,
    as_json: bool = False,
    result_ways: Sequence[str] = (),
) -> bytes:
    """Return the bytes of one call's arguments. Raises ArgumentsUnserializable.

    `result_ways`: how the result may be sent, to be tried in this order (see strategies).
    """
    try:
        call = (args, dict(kwargs))
        data = encoding.dumps_json(call) if as_json else encoding.dumps(call, local_by_value=local_by_value)
        return encoding.request(list(result_ways), data) if result_ways else data
    except encoding.NotSerializable as error:
        raise ArgumentsUnserializable(name=name, reason=str(error)) from error


def load_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs). Raises DataCorrupt or DataUnreadable."""
    if data[3:4] == encoding.REQUEST:
        encoding.unframe(data, "argument list")
        data = encoding.inner(data)
    value = encoding.loads(data, "argument list")
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], tuple | list)):
        raise DataCorrupt(what="argument list", reason="it is not a pair of args and kwargs")
    args, kwargs = value
    return tuple(args), kwargs


def serialize_result(value: object, ways: Sequence[str] = ()) -> bytes:
    """Return the bytes of a function's value, in the first of these ways that takes it. Raises ResultUnserializable."""
    reasons = []
    for way in ways or ("pickle",):
        try:
            return encoding.dumps_json(value) if way == "json" else encoding.dumps(value, local_by_value=False)
        except encoding.NotSerializable as error:
            reasons.append(str(error) if len(ways) < 2 else f"{way}: {error}")
    raise ResultUnserializable(reason="; ".join(reasons))


def result_ways_of(arguments: bytes) -> list[str]:
    """Return how the caller wants the result; empty where they do not say."""
    return encoding.ways_wanted(arguments)


def load_result(data: bytes) -> Any:
    """Return the value of a task. Raises DataCorrupt or DataUnreadable."""
    return encoding.loads(data, "result", "here")


class ExceptionRecord(msgspec.Struct, frozen=True, array_like=True):
    """An exception as it travels. `pickled` is a frame of the instance, `parts` one of (class, args, attributes)
    for classes with an `__init__` that takes something other than `args`; both are empty if they don't pickle."""

    type_name: str
    message: str
    traceback: str
    pickled: bytes = b""
    parts: bytes = b""


_decoder = msgspec.msgpack.Decoder(ExceptionRecord)


def type_name(error: BaseException) -> str:
    """Return the qualified name of an exception's class, without `builtins.`."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def message_of(error: BaseException) -> str:
    """Return an exception's own text, clipped; a placeholder if its `__str__` fails."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the exception's own code
        return "<its text cannot be made>"
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "..."


def serialize_exception(error: BaseException, *, skip_frames: int = 0, max_bytes: int = 1 << 20) -> bytes:
    """Return the bytes of an exception with its traceback as text; never raises.

    `skip_frames` outermost frames (the runner's own) are left out. An instance that does not pickle, or to
    more than `max_bytes`, is left out, and so told of by name only.
    """
    record = ExceptionRecord(
        type_name(error),
        message_of(error),
        _traceback_text(error, skip_frames),
        _dump_if_possible(error, max_bytes),
        _dump_if_possible((type(error), error.args, error.__dict__), max_bytes),
    )
    return encoding.frame(encoding.EXCEPTION, msgspec.msgpack.encode(record))


def _dump_if_possible(value: object, max_bytes: int) -> bytes:
    try:
        pickled = encoding.dumps(value, local_by_value=False)
    except encoding.NotSerializable:
        return b""  # its name and text travel all the same
    return pickled if len(pickled) <= max_bytes else b""


def _traceback_text(error: BaseException, skip_frames: int) -> str:
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    text = "".join(traceback.format_exception(type(error), error, trace))
    text = text.encode("utf-8", "backslashreplace").decode()
    half = _MAX_TRACEBACK_CHARS // 2
    return text if len(text) <= _MAX_TRACEBACK_CHARS else f"{text[:half]}\n  ...\n{text[-half:]}"


def load_exception(data: bytes) -> Exception:
    """Return the exception to raise for a failed task: its own type where it can be rebuilt here, else RemoteError.

    The remote traceback is its `__cause__` and a note. SystemExit and its like, which would end the
    person's script rather than tell it something, come as RemoteError. Raises DataCorrupt.
    """
    kind, body = encoding.unframe(data, "exception")
    if kind != encoding.EXCEPTION:
        raise DataCorrupt(what="exception", reason=f"its kind is {kind!r}")
    try:
        record = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataCorrupt(what="exception", reason=str(error)) from error
    rebuilt = _rebuild(record)
    rebuilt.__cause__ = RemoteTraceback(record.traceback)
    rebuilt.add_note(f"remote traceback:\n{printable_lines(record.traceback.rstrip())}")
    return rebuilt


def _rebuild(record: ExceptionRecord) -> Exception:
    with contextlib.suppress(DataCorrupt, DataUnreadable):
        value = encoding.loads(record.pickled, "exception", "here")
        if isinstance(value, Exception):
            return value
    with contextlib.suppress(DataCorrupt, DataUnreadable, TypeError, ValueError):
        kind, args, attributes = encoding.loads(record.parts, "exception", "here")
        if issubclass(kind, Exception):
            bare: Exception = kind.__new__(kind, *args)
            bare.args = args
            bare.__dict__.update(attributes)
            return bare
    return RemoteError(type_name=record.type_name, message=record.message, remote_traceback=record.traceback)


def failure_text(error: BaseException) -> str:
    """Return one line for a failed task, clipped: the exception's name and text."""
    text = error.text if isinstance(error, MepError) else message_of(error)
    line = f"{type_name(error)}: {text}" if text else type_name(error)
    return line if len(line) <= 1000 else line[:1000] + "..."
