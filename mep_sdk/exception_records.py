"""A task's exception as bytes and back.

Its class, attributes, notes and text are the person's code, on both sides: each is touched through foreign_code. The
interpreter's own fields (`args`, `__dict__`, `__cause__`) are read and set through BaseException's descriptors, since a
class may replace them or be frozen. What cannot be rebuilt arrives as RemoteError with its name and text.
"""

from __future__ import annotations

import builtins
import sys
import traceback
from typing import Any

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt, RemoteError, RemoteTraceback
from mep_sdk.exception_values import attributes_of, make, parts
from mep_sdk.foreign_code import attempt, clean, text_of, type_name
from mep_wire.text import printable_lines

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

_MAX_TRACEBACK_CHARS = 64 * 1024
_MAX_MEMBER_TRACEBACK_CHARS = 4 * 1024
_MAX_MEMBERS = 100
"""How many exceptions within groups travel with their classes; others come by name and text."""
_MAX_DEPTH = 20
_MAX_TRIED = 16
"""How many attributes are tried one by one where they do not pickle together."""
_attributes = BaseException.__dict__["__dict__"]
_cause = BaseException.__dict__["__cause__"]


class ExceptionRecord(msgspec.Struct, frozen=True, array_like=True):
    """An exception as it travels. `pickled` is a frame of the instance, `parts` one of (class, args, attributes)
    for classes with an `__init__` that takes something other than `args`; both are empty if they don't pickle."""

    type_name: str
    message: str
    traceback: str
    pickled: bytes = b""
    parts: bytes = b""
    members: tuple[ExceptionRecord, ...] = ()
    """Of an exception group; then `pickled` is empty, and `parts` has only the group's message for args."""


_decoder = msgspec.msgpack.Decoder(ExceptionRecord)


# --- to bytes, in the worker --------------------------------------------------------------------------


def serialize_exception(error: BaseException, *, skip_frames: int = 0, max_bytes: int = 1 << 20) -> bytes:
    """Return the bytes of an exception with its traceback as text; never raises.

    `skip_frames` outermost frames (the runner's own) are left out. An instance that does not pickle, or to
    more than `max_bytes`, is left out, and so told of by name only.
    """
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    record = _Recorder(max_bytes).record(error, _traceback_text(error, trace, _MAX_TRACEBACK_CHARS))
    return encoding.frame(encoding.EXCEPTION, msgspec.msgpack.encode(record))


class _Recorder:
    """Makes one exception's record and, for a group, those of its members, to `max_bytes` of pickles together."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes
        self._members_left = _MAX_MEMBERS

    def record(self, error: BaseException, trace_text: str, depth: int = 0) -> ExceptionRecord:
        name, message = type_name(error), text_of(error)
        if isinstance(error, BaseExceptionGroup) and depth < _MAX_DEPTH:
            return self._group(error, ExceptionRecord(name, message, trace_text), depth)
        args, attributes = attempt(parts, error)[0] or (None, {})
        return ExceptionRecord(name, message, trace_text, self._dump(error), self._parts(error, args, attributes))

    def _group(self, group: BaseExceptionGroup[Any], bare: ExceptionRecord, depth: int) -> ExceptionRecord:
        attributes, _ = attempt(attributes_of, group)
        own = self._parts(group, (_message_of_group(group),), attributes or {})
        members = BaseExceptionGroup.__dict__["exceptions"].__get__(group)
        records = tuple(self._member(each, depth) for each in members)
        return msgspec.structs.replace(bare, parts=own, members=records)

    def _member(self, error: BaseException, depth: int) -> ExceptionRecord:
        if self._members_left <= 0:
            return ExceptionRecord(type_name(error), text_of(error), "")
        self._members_left -= 1
        text = _traceback_text(error, error.__traceback__, _MAX_MEMBER_TRACEBACK_CHARS)
        return self.record(error, text, depth + 1)

    def _parts(self, error: BaseException, args: tuple[Any, ...] | None, attributes: dict[str, Any]) -> bytes:
        """Return class, args and attributes; without those that do not pickle, or not to so few bytes."""
        kind = type(error)
        whole = self._dump((kind, args, attributes)) if args is not None else b""
        if whole:
            return whole
        kept = {name: value for name, value in list(attributes.items())[:_MAX_TRIED] if self._fits(value)}
        return self._dump((kind, args, kept)) or self._dump((kind, None, kept))

    def _fits(self, value: object) -> bool:
        pickled, _ = attempt(lambda: encoding.dumps(value, local_by_value=False))
        return pickled is not None and len(pickled) <= self._bytes_left // _MAX_TRIED

    def _dump(self, value: object) -> bytes:
        pickled, _ = attempt(lambda: encoding.dumps(value, local_by_value=False))
        if pickled is None or len(pickled) > self._bytes_left:
            return b""  # its name and text travel all the same
        self._bytes_left -= len(pickled)
        return pickled


def _message_of_group(group: BaseExceptionGroup[Any]) -> str:
    return text_of(BaseExceptionGroup.__dict__["message"].__get__(group))


def _traceback_text(error: BaseException, trace: Any, limit: int) -> str:
    lines, _ = attempt(traceback.format_exception, type(error), error, trace)
    if lines is None:  # its notes, attributes or module cannot be read
        frames, _ = attempt(traceback.format_tb, trace)
        name, text = type_name(error), text_of(error)
        lines = ["Traceback (most recent call last):\n", *(frames or []), f"{name}: {text}\n" if text else f"{name}\n"]
    text = clean("".join(lines), 1 << 30)
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]}\n  ...\n{text[-half:]}"


# --- from bytes, in the person's script ---------------------------------------------------------------


def load_exception(data: bytes, *, unpickle: bool = True) -> Exception:
    """Return the exception to raise for a failed task: its own type where it can be rebuilt here, else RemoteError.
    Without `unpickle` only the interpreter's own types can be.

    The remote traceback is its `__cause__` and a note. SystemExit and its like, which would end the
    person's script rather than tell it something, come as RemoteError. Raises DataCorrupt.
    """
    kind, body = encoding.unframe(data, "exception")
    if kind != encoding.EXCEPTION:
        raise DataCorrupt(what="exception", reason=f"its kind is {kind!r}")
    try:
        record = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataCorrupt(what="exception", reason=str(error)) from error
    rebuilt = _rebuild(record) if unpickle else _by_name(record)
    _cause.__set__(rebuilt, RemoteTraceback(record.traceback))
    _note(rebuilt, RemoteNote(f"remote traceback:\n{printable_lines(record.traceback.rstrip())}"))
    return rebuilt


class RemoteNote(str):
    """The remote traceback as a note. Printed, it is short: `__cause__` has been printed then, with the same text."""

    __slots__ = ()

    def __str__(self) -> str:
        return "remote traceback: see above"


def _note(error: BaseException, note: str) -> None:
    """Add a note, also to a frozen exception and to one with notes that are no list."""
    attributes = _attributes.__get__(error)
    notes = attributes.get("__notes__")
    attributes["__notes__"] = [*notes, note] if type(notes) is list else [note]


def _rebuild(record: ExceptionRecord) -> Exception:
    """Return the exception in a record, of its own class where it comes with that and its text."""
    unlike: Exception | None = None
    for way in (_from_members,) if record.members else (_from_pickle, _from_parts, _from_message):
        made: Any = attempt(way, record)[0]
        if not issubclass(type(made), Exception):
            continue
        rebuilt: Exception = made
        if record.members or text_of(rebuilt) == record.message:
            return rebuilt
        unlike = rebuilt if unlike is None else unlike  # as with texts that hold an address
    return unlike if unlike is not None else _remote_error(record)


def _remote_error(record: ExceptionRecord) -> RemoteError:
    return RemoteError(type_name=record.type_name, message=record.message, remote_traceback=record.traceback)


def _by_name(record: ExceptionRecord) -> Exception:
    """Return one of the interpreter's own exceptions with the record's text, or RemoteError. Nothing is unpickled, and
    an endpoint that must not run code here must not reach the terminal either."""
    name, message = printable_lines(record.type_name), printable_lines(record.message)
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        made, _ = attempt(kind, message)
        if made is not None and text_of(made) == message:
            return made
    return _remote_error(msgspec.structs.replace(record, type_name=name, message=message))


def _from_pickle(record: ExceptionRecord) -> Any:
    return encoding.loads(record.pickled, "exception", "here")


def _from_parts(record: ExceptionRecord) -> Any:
    return make(*encoding.loads(record.parts, "exception", "here"))


def _from_message(record: ExceptionRecord) -> Any:
    """Return an exception with the right class and text, for a class that takes its text apart."""
    kind, _, attributes = encoding.loads(record.parts, "exception", "here")
    return make(kind, (record.message,), attributes)


def _from_members(record: ExceptionRecord) -> Any:
    members = [_rebuild(each) for each in record.members]
    if sys.version_info < (3, 11) and record.type_name == "ExceptionGroup":  # it is pickled as one of builtins
        return ExceptionGroup(record.message.rpartition(" (")[0], members)
    kind, (message,), attributes = encoding.loads(record.parts, "exception", "here")
    if not issubclass(kind, Exception):  # its members that end a script have become RemoteErrors
        kind = ExceptionGroup
    return make(kind, (message, members), attributes)
