"""Refusals of wrong arguments: each says what was given and what is accepted, with an example. Called by the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

FUNCTION_IDS = "register_function returned it"
GROUP_IDS = "Executor.task_group_id has it"
TASK_IDS = "TaskFuture.task_id has it"


def check_call(args: Any, kwargs: Any) -> None:
    """Check the arguments of a registered function's call. Raises TypeError."""
    if args is not None and (not isinstance(args, Sequence) or isinstance(args, str | bytes)):
        raise TypeError(f"args is a list or tuple of arguments, such as args=[{args!r}], not {shown(args)}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs is a dict of arguments by name, such as kwargs={{'size': 3}}, not {shown(kwargs)}")


def check_count(name: str, value: Any, example: int) -> None:
    """Check a number of things. Raises TypeError, or ValueError below 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a number, such as {name}={example}, not {shown(value)}")
    if value < 1:
        raise ValueError(f"{name} is 1 or more, such as {name}={example}, not {value}")


def check_seconds(name: str, value: Any, example: float) -> None:
    """Check a time. Raises TypeError, or ValueError below 0."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, such as {name}={example}, not {shown(value)}")
    if not value >= 0:
        raise ValueError(f"{name} is in seconds, 0 or more, such as {name}={example}, not {value}")


def check_timeout(name: str, value: Any) -> None:
    """Check how long to wait: any number, or None. Raises TypeError."""
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise TypeError(f"{name} is a number of seconds or None, such as {name}=60, not {shown(value)}")


def check_iterables(iterables: tuple[Any, ...]) -> None:
    """Check the arguments of map. Raises TypeError."""
    for each in iterables:
        if not hasattr(each, "__iter__") and not hasattr(each, "__getitem__"):
            raise TypeError(f"map takes lists of arguments, such as executor.map(f, [1, 2, 3]), not {shown(each)}")


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Check that an argument is None or of this class. Raises TypeError."""
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is of class {kind.__name__}, such as {name}={example}, not {shown(value)}")


def checked_id(name: str, value: Any, origin: str) -> str:
    """Return an id as text. `origin` says where ids of this kind come from. Raises TypeError, ValueError."""
    if isinstance(value, UUID):
        return str(value)
    hint = f"{name} is an id, as {origin}, such as 4b116d3c-1703-4f8f-9f6f-39921e5864df"
    if not isinstance(value, str):
        raise TypeError(f"{hint}, not {shown(value)}")
    try:
        UUID(value)
    except ValueError:
        raise ValueError(f"{hint}, not {shown(value)}") from None
    return value


def check_secret(name: str, value: Any, example: str) -> None:
    """Check that an argument is text or None, without a word of its value. Raises TypeError."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} is text, such as {name}={example}, not of class {type(value).__name__}")


def check_several(name: str, value: Any, example: str) -> None:
    """Check that an argument holds several things, and is no text. Raises TypeError."""
    if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__iter__")):
        raise TypeError(f"{name} is a list, such as {name}={example}, not {shown(value)}")


def shown(value: Any) -> str:
    """Return a value as an error shows it: at most 100 characters of it."""
    text = repr(value)
    return f"{text[:100]}..." if len(text) > 100 else text
