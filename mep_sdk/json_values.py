"""Values of the person's that travel as JSON: checked here, where the mistake was made, with the key that holds it."""

from __future__ import annotations

import math
from typing import Any

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_DEPTH = 100


def checked_json(value: Any, what: str) -> Any:
    """Return a copy of `value` of JSON's own types: tuples become lists, and keys that are integers strings.

    Raises ValueError or TypeError for a value that JSON, or the way to the site, does not carry as it is. `what` is its
    name in the error, before the keys that lead there: `user_endpoint_config["a"][2]`.
    """
    return _copy(value, what, 0)


def _copy(value: Any, path: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"{path} is nested more than {_MAX_DEPTH} levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, int):
        return _whole(int(value), path)
    if isinstance(value, float):
        return _finite(float(value), path)
    if isinstance(value, (list, tuple)):
        return [_copy(each, f"{path}[{index}]", depth + 1) for index, each in enumerate(value)]
    if isinstance(value, dict):
        made = {_key(key, path): _copy(each, f"{path}[{key!r}]", depth + 1) for key, each in value.items()}
        if len(made) < len(value):
            raise ValueError(f"{path} has two keys that are one as a string, such as 1 and '1'")
        return made
    raise TypeError(
        f"{path} is of type {type(value).__name__}, which must be JSON-serializable: "
        "use dict, list, str, int, float, bool or None"
    )


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return _text(key, f"a key of {path}")
    if isinstance(key, int) and not isinstance(key, bool):
        return str(int(key))  # as JSON has it
    raise TypeError(f"{path} has the key {key!r}, and JSON's keys are strings, such as {{'size': 3}}")


def _text(value: str, path: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{path} holds a lone surrogate, which is no text: {text[:40]!a}") from None
    return text


def _whole(value: int, path: str) -> int:
    if not _MIN_INT <= value <= _MAX_INT:
        raise ValueError(f"{path} is an integer beyond 64 bits; pass it as a string")
    return value


def _finite(value: float, path: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{path} is {value}, which JSON does not have; leave the key out, or pass a string")
    return value
