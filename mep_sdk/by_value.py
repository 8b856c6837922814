"""Values that name themselves when they are pickled, and have their name in a module that the other side lacks.

The wrapper of functools.lru_cache, NewType, ParamSpec, members of some enums and sentinels with a `__reduce__` that
returns a string are pickled as `module.name`. Where the module is the person's script, they travel as what they are
made of instead. So do singledispatch functions and cached properties, which hold weak references and locks. Called by
encoding for what a plain pickle cannot carry.
"""

from __future__ import annotations

import enum
import functools
import sys
import types
import typing
from typing import Any

import cloudpickle

from mep_sdk import classes_by_value, importable

_HEAP_TYPE = 1 << 9
"""Py_TPFLAGS_HEAPTYPE: a class that a Python statement made; its instances can be made without arguments."""
_SET_AGAIN = frozenset({"__wrapped__", "cache_parameters", "cache_info", "cache_clear"})


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's, which makes values of more kinds of object. `local`: also where a module is not installed."""

    local = False

    def reducer_override(self, obj: Any) -> Any:
        """Return how to rebuild `obj`."""
        kind = type(obj)
        if kind is types.FunctionType:
            made = _dispatcher(obj, local=self.local)
            return super().reducer_override(obj) if made is None else made
        if kind is functools.cached_property:
            return functools.cached_property, (obj.func,), {"attrname": obj.attrname, "__doc__": obj.__doc__}
        if issubclass(kind, type):
            return classes_by_value.reduction(obj, super().reducer_override(obj))
        if kind is object:
            named = _name_of_object(obj, local=self.local)
            return NotImplemented if named is None else (the_one, (*named, object, None))
        known = kind in self.dispatch_table.maps[0]
        if not known and importable.reduces_itself(kind):
            found = importable.own_reduction(obj)
            if isinstance(found, str) and importable.named_elsewhere(obj, found, local=self.local):
                return _made_of(obj, found)
            return found
        return super().reducer_override(obj)


class LocalPickler(Pickler):
    """The same, but modules that are not installed travel by value."""

    local = True


class _Made:
    """Stands for the value of a call, which is made when it is unpickled."""

    def __init__(self, call: Any, *args: Any) -> None:
        self._reduced = (call, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced

    def __call__(self) -> None:
        """pickle wants something that can be called."""


def _made_of(obj: Any, name: str) -> tuple[Any, ...]:
    """Return how to make an object that is pickled by a name which the other side lacks. Raises NotSerializable."""
    kind = type(obj)
    if kind is _Cached:
        options = obj.cache_parameters()
        decorator = _Made(functools.lru_cache, options["maxsize"], options["typed"])
        own = {key: value for key, value in vars(obj).items() if key not in _SET_AGAIN}
        return decorator, (obj.__wrapped__,), own
    if kind is typing.NewType:
        return typing.NewType, (obj.__name__, obj.__supertype__), {"__module__": obj.__module__}
    if kind in _PARAMETERS:
        return kind, (obj.__name__,)
    if isinstance(obj, enum.Enum):
        return kind, (obj.value,)
    if not kind.__flags__ & _HEAP_TYPE:
        raise importable.NotSerializable(
            f"{name} is pickled by its name in {obj.__module__}, which the other side lacks"
        )
    return the_one, (importable.module_of(obj, name), name, kind, _state(obj))


_Cached = type(functools.lru_cache(len))
_PARAMETERS = (typing.ParamSpec, getattr(typing, "TypeVarTuple", typing.ParamSpec))


def _state(obj: Any) -> Any:
    getter = getattr(type(obj), "__getstate__", None)
    if getter is not None:
        return getter(obj)
    return getattr(obj, "__dict__", None)


_ones: dict[tuple[str, str], Any] = {}


def _name_of_object(obj: object, *, local: bool) -> tuple[str, str] | None:
    """Return module and name of a bare object(), which a script compares by identity; None where it has no name."""
    for names, known in list(_ones.items()):
        if known is obj:
            return names
    modules = [sys.modules.get("__main__"), *(importable.local_modules() if local else ())]
    for module in modules:
        if module is None:
            continue
        for name, value in list(vars(module).items()):
            if value is obj:
                return module.__name__, name
    return None


def the_one(module: str, name: str, kind: type, state: Any) -> Any:
    """Return the object of this name: this script's own where it has it, else the one made at the first call, so that
    `is` holds for a sentinel wherever it comes from."""
    own: Any = sys.modules.get(module)
    for part in name.split("."):
        own = getattr(own, part, None)
    if own is not None and type(own).__qualname__ == kind.__qualname__:
        return own
    known = _ones.get((module, name))
    if known is None or type(known) is not kind:
        known = _ones[module, name] = object.__new__(kind)
        _set_state(known, state)
    return known


def _set_state(made: Any, state: Any) -> None:
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    for name, value in {**(attributes or {}), **(slots or {})}.items():
        object.__setattr__(made, name, value)


# --- singledispatch -----------------------------------------------------------------------------------


def _dispatcher(function: types.FunctionType, *, local: bool) -> tuple[Any, ...] | None:
    """Return how to make a singledispatch function anew; None for any other."""
    registry = function.__dict__.get("registry")
    if not isinstance(registry, types.MappingProxyType) or object not in registry:
        return None
    if not importable.needs_value(function.__module__, local=local):
        return None
    return dispatching, (registry[object],), dict(registry), None, None, register_all


def dispatching(default: Any) -> Any:
    """Return a singledispatch function with its default."""
    return functools.singledispatch(default)


def register_all(function: Any, registry: dict[Any, Any]) -> None:
    """Register a singledispatch function's implementations."""
    for kind, implementation in registry.items():
        if kind is not object:
            function.register(kind, implementation)
