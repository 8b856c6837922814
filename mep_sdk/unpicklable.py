"""Finds what in a value does not pickle, and the way to it: `cannot pickle a lock` alone does not help.

Loaded where something did not pickle. Each part is tried by itself, for a second and 500 parts at most.
"""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from mep_sdk.foreign_code import attempt, clean

_MAX_TRIES = 500
_MAX_S = 1.0
_MAX_DEPTH = 12


def path_to_fault(value: Any, name: str, pickles: Callable[[Any], bool]) -> str:
    """Return the way to the innermost part of `value` that does not pickle, such as `args[0].pool._lock`; empty if it
    is `value` itself, or cannot be found. `name` stands for the value, `pickles` tries one."""
    found, _ = attempt(_Search(pickles).path, value, name)
    return clean(found, 300) if found and found != name else ""


class _Search:
    def __init__(self, pickles: Callable[[Any], bool]) -> None:
        self._pickles = pickles
        self._tries, self._ends = 0, time.monotonic() + _MAX_S
        self._seen: set[int] = set()

    def path(self, value: Any, name: str) -> str:
        """Follow the first part that fails, as long as there is one."""
        for _ in range(_MAX_DEPTH):
            inner = next((each for each in _parts(value, name) if self._fails(each[1])), None)
            if inner is None:
                break
            name, value = inner
            self._seen.add(id(value))
        return name

    def _fails(self, value: Any) -> bool:
        self._tries += 1
        if self._tries > _MAX_TRIES or time.monotonic() > self._ends or id(value) in self._seen:
            return False
        return not self._pickles(value)


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the parts that pickle would visit, each with its way."""
    if isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", each) for key, each in list(value.items()))
    elif isinstance(value, (list, tuple)):
        yield from ((f"{name}[{index}]", each) for index, each in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield from ((f"an element of {name}", each) for each in value)
    elif isinstance(value, types.MethodType):
        yield f"{name}.__self__", value.__self__
        yield f"{name}.__func__", value.__func__
    elif isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from ((f"{name}.{key}", each) for key, each in list(vars(value).items()) if not _is_slot(key))
    else:
        for way in ("func", "args", "keywords"):  # of functools.partial
            if type(value).__name__ == "partial" and hasattr(value, way):
                yield f"{name}.{way}", getattr(value, way)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            yield from ((f"{name}.{key}", each) for key, each in list(attributes.items()))


def _is_slot(key: str) -> bool:
    return key in ("__dict__", "__weakref__", "__module__", "__doc__", "__qualname__")


def _parts_of_function(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    name = function.__name__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        value, failure = attempt(lambda cell=cell: cell.cell_contents)
        if failure is None:
            yield f"variable {variable} of {name}", value
    defaults, code = function.__defaults__ or (), function.__code__
    named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    yield from ((f"default of {variable} of {name}", each) for variable, each in zip(named, defaults, strict=False))
    yield from ((f"default of {key} of {name}", each) for key, each in (function.__kwdefaults__ or {}).items())
    for variable in _global_names(code):
        if variable in function.__globals__:
            value = function.__globals__[variable]
            if not isinstance(value, types.ModuleType):
                yield f"global {variable}, used by {name},", value


def _global_names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
