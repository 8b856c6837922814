"""Whether a function would be serialized as before: what it uses of its module may change between two submits.

Values that cannot change are compared by identity, which costs a submit less than a microsecond each. If a function
uses lists, dicts or objects, its bytes are made again and compared, up to a size. Used by Executor.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from typing import Any

from mep_sdk.importable import needs_value

_STEADY = (type(None), bool, int, float, complex, str, bytes, types.FunctionType, types.BuiltinFunctionType, type)
_MAX_FUNCTIONS = 200
MAX_COMPARED_BYTES = 64 * 1024
"""Larger functions are not made again at each submit: of what they use, only values that are replaced are noticed."""
_ABSENT = object()


class Captured:
    """What a plain function, and those of the script that it calls, use: globals, variables of closures, defaults."""

    def __init__(self, function: types.FunctionType) -> None:
        self._functions: list[tuple[weakref.ref[types.FunctionType], tuple[Any, ...]]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[weakref.ref[types.FunctionType], int, Any]] = []
        """Variables of closures, by their function and index: a cell can hold its own function."""
        self._seen: set[int] = set()
        self.steady = True
        """Whether all of it can only be replaced, and not be changed in place."""
        self._add(function)

    def _add(self, function: types.FunctionType) -> None:
        if id(function) in self._seen or len(self._seen) >= _MAX_FUNCTIONS:
            return
        self._seen.add(id(function))
        self._functions.append((weakref.ref(function), _own(function)))
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._use(default)
        for index in range(len(function.__closure__ or ())):
            value = _contents(function, index)
            self._cells.append((weakref.ref(function), index, _held(value)))
            self._use(value)
        space = function.__globals__
        for name in dict.fromkeys(_names(function.__code__)):
            value = space.get(name, _ABSENT)
            if value is not _ABSENT:
                self._globals.append((space, name, _held(value)))
                self._use(value)

    def _use(self, value: Any) -> None:
        if isinstance(value, types.FunctionType):
            if needs_value(value.__module__ or "", local=True):
                self._add(value)
        elif value is not _ABSENT and not isinstance(value, (*_STEADY, types.ModuleType)):
            self.steady = False

    def unchanged(self) -> bool:
        """Return whether all of it is the same as at first. What was changed in place is not noticed here."""
        return (
            all(_is(held, space.get(name, _ABSENT)) for space, name, held in self._globals)
            and all(_is(held, _contents(ref(), index)) for ref, index, held in self._cells)
            and all((each := ref()) is not None and _same(_own(each), own) for ref, own in self._functions)
        )


def _own(function: types.FunctionType) -> tuple[Any, ...]:
    """Return what tells whether a function itself was changed."""
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def _held(value: Any) -> Any:
    """Return a value to be compared later. Functions are not kept alive."""
    return weakref.ref(value) if isinstance(value, types.FunctionType) else value


def _is(held: Any, value: Any) -> bool:
    return held is value or (isinstance(held, weakref.ref) and held() is value)


def _contents(function: types.FunctionType | None, index: int) -> Any:
    """Return a variable of a function's closure."""
    try:
        return function.__closure__[index].cell_contents if function and function.__closure__ else _ABSENT
    except ValueError:  # it is empty
        return _ABSENT


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
