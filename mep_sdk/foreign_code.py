"""Calls of the person's own code where it may end no more than the one task: exceptions and values can run anything.

To print an exception, to read its attributes, to pickle or to unpickle a value calls methods that the person wrote.
They may raise anything, SystemExit included, and return text that does not encode. Called by the task runner in
workers and by the SDK's threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from mep_wire.errors import MepError

_T = TypeVar("_T")

MAX_MESSAGE_CHARS = 8 * 1024
_MAX_NAME_CHARS = 512
_MAX_LINE_CHARS = 1000
NO_TEXT = "<its text cannot be made>"


def attempt(call: Callable[..., _T], *args: object) -> tuple[_T | None, BaseException | None]:
    """Return (value, None), or (None, whatever the call raised)."""
    try:
        return call(*args), None
    except BaseException as error:  # noqa: BLE001 - the person's code, which may even exit
        return None, error


def clean(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    r"""Return `text` as a plain str that encodes, with lone surrogates as `\udc80`, clipped to `limit` characters."""
    text = str.encode(text, "utf-8", "backslashreplace").decode()  # of str itself: a subclass may have its own
    return text if len(text) <= limit else text[:limit] + "..."


def _name(kind: type) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return clean(name, _MAX_NAME_CHARS)


def type_name(error: BaseException) -> str:
    """Return the qualified name of an exception's class, without `builtins.`."""
    name, _ = attempt(_name, type(error))
    return name or "<a class whose name cannot be read>"


def text_of(value: object, limit: int = MAX_MESSAGE_CHARS) -> str:
    """Return `str(value)`, clipped; a placeholder if its `__str__` fails."""
    text, failure = attempt(lambda: clean(str(value), limit))
    return NO_TEXT if text is None or failure is not None else text


def _own_text(error: BaseException) -> str | None:
    return error.text if isinstance(error, MepError) else None


def failure_text(error: BaseException) -> str:
    """Return one line for a failed task, clipped: the exception's name and text."""
    own, _ = attempt(_own_text, error)
    text = text_of(error) if own is None else text_of(own)
    line = f"{type_name(error)}: {text}" if text else type_name(error)
    return clean(line, _MAX_LINE_CHARS)
