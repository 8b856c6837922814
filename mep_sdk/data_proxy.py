"""What a reference to a store becomes on its way: an object that is its value, loaded when it is first used.

Everything that is asked of it is asked of the value: attributes, operators, items, calls, `isinstance`. `type` and the
buffers that C code takes without asking are its own; `mep_sdk.data.value_of` gives the value itself. Pickled again, it
is the reference, so that to pass it on moves no data.
"""

from __future__ import annotations

import importlib
import operator
import threading
from collections.abc import Callable
from typing import Any

_UNSET: Any = object()
_loading = threading.RLock()


class Lazy:
    """See the module."""

    __slots__ = ("__weakref__", "_ref", "_value")

    def __init__(self, ref: Any) -> None:
        object.__setattr__(self, "_ref", ref)
        object.__setattr__(self, "_value", _UNSET)

    def _load(self) -> Any:
        value = object.__getattribute__(self, "_value")
        if value is _UNSET:
            with _loading:
                value = object.__getattribute__(self, "_value")
                if value is _UNSET:
                    value = object.__getattribute__(self, "_ref").get()
                    object.__setattr__(self, "_value", value)
        return value

    def __getattribute__(self, name: str) -> Any:
        if name in ("__reduce_ex__", "__reduce__"):
            return object.__getattribute__(self, name)
        return getattr(_value(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_value(self), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_value(self), name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: tuple[Any, ...] = object.__getattribute__(self, "_ref").__reduce__()
        return reduced

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("numpy").asarray(_value(self), *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the value."""
        return _value(self)(*args, **kwargs)

    def __hash__(self) -> int:
        return hash(_value(self))

    def __exit__(self, *args: object) -> Any:
        return _value(self).__exit__(*args)

    def __enter__(self) -> Any:
        return _value(self).__enter__()


def _value(lazy: Lazy) -> Any:
    return object.__getattribute__(lazy, "_load")()


def _passing_on(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Lazy, *args: Any) -> Any:
        return function(_value(self), *args)

    return method


def _swapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Lazy, other: Any) -> Any:
        return function(other, _value(self))

    return method


_BINARY = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "xor", "or_")
_BUILTIN: tuple[Callable[..., Any], ...] = (
    *(repr, str, bytes, format, bool, len, int, float, complex, round, divmod, iter, next, reversed, dir),
    operator.length_hint,
)
_COMPARED = ("lt", "le", "eq", "ne", "gt", "ge")
_UNARY = ("neg", "pos", "invert", "index", "abs", "getitem", "setitem", "delitem", "contains")
_ASKED: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in _BUILTIN},
    **{name: getattr(operator, name) for name in (*_COMPARED, *_UNARY)},
    **{name.strip("_"): getattr(operator, name) for name in _BINARY},
    **{f"i{name.strip('_')}": getattr(operator, f"i{name.strip('_')}") for name in _BINARY},
}
for _name, _function in _ASKED.items():
    setattr(Lazy, f"__{_name}__", _passing_on(_function))
for _name in _BINARY:
    setattr(Lazy, f"__r{_name.strip('_')}__", _swapped(getattr(operator, _name)))
