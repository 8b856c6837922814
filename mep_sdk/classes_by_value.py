"""Classes of a script as they travel: made anew once on the other side, and left alone on their own.

cloudpickle sets the attributes of a class each time it loads one, also in the script that the class comes from. A
result then gave the script's class the worker's counters, and methods that read the worker's globals. It also leaves
out `__slots__`, and calls `__init_subclass__` for each copy, without its arguments. Called by by_value's pickler.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

from cloudpickle import cloudpickle

copies: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that were made here from another process's: only their attributes are set again."""
_making = threading.RLock()
"""Held while a class has another `__init_subclass__`."""
_MAKERS: dict[Any, Callable[..., Any]] = {}


def reduction(kind: type, made: Any) -> Any:
    """Return how to make a class, where `made` is cloudpickle's answer."""
    if type(made) is not tuple or made[0] not in _MAKERS or made[5] is not cloudpickle._class_setstate:  # noqa: SLF001 - there is no public way
        return made
    arguments, (attributes, slots) = list(made[1]), made[2]
    members = [name for name, value in vars(kind).items() if _is_member(value, kind)]
    if "__slots__" in vars(kind) and not issubclass(kind, tuple) and made[0] is cloudpickle._make_skeleton_class:  # noqa: SLF001 - as above
        weak = ("__weakref__",) if "__weakref__" in vars(kind) else ()
        with_dict = ("__dict__",) if "__dict__" in vars(kind) else ()
        arguments[3] = {**arguments[3], "__slots__": (*members, *weak, *with_dict)}
    state = {name: value for name, value in attributes.items() if name not in members}
    return _MAKERS[made[0]], tuple(arguments), (state, slots), None, None, set_state


def _is_member(value: object, kind: type) -> bool:
    return type(value) is types.MemberDescriptorType and value.__objclass__ is kind


def make(metaclass: Any, name: str, bases: tuple[Any, ...], namespace: dict[str, Any], tracker: str, extra: Any) -> Any:
    """Return the class with this tracker: this process's own, or a new one without attributes."""
    if (own := known(tracker)) is not None:
        return own
    owner = _hook_owner(types.resolve_bases(bases))
    arguments = (name, bases, {"metaclass": metaclass}, lambda space: space.update(namespace))
    if owner in copies:  # what the hook has done to the class and its bases travels with them
        new = _without_hook(owner, *arguments)
    else:
        try:
            new = types.new_class(*arguments)
        except TypeError:  # perhaps the hook wants arguments
            if owner is object:
                raise
            new = _without_hook(owner, *arguments)
    return tracked(new, tracker)


def make_enum(*arguments: Any) -> Any:
    """Return an enumeration, as `make` does. The last argument but one is its tracker."""
    if (own := known(arguments[-2])) is not None:
        return own
    return tracked(cloudpickle._make_skeleton_enum(*arguments[:-2], None, arguments[-1]), arguments[-2])  # noqa: SLF001 - as above


def known(tracker: str) -> Any:
    """Return the class with this tracker, the script's own or one that was made here; None without one."""
    return cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)  # noqa: SLF001 - there is no public way


def tracked(new: type, tracker: str) -> type:
    """Keep a class that was made here; return it, or the one that another thread made in between."""
    copies.add(new)
    kept: type = cloudpickle._lookup_class_or_track(tracker, new)  # noqa: SLF001 - there is no public way
    return kept


def set_state(kind: type, state: Any) -> type:
    """Set the attributes of a copy."""
    if kind in copies:
        cloudpickle._class_setstate(kind, state)  # noqa: SLF001 - there is no public way
    return kind


def _hook_owner(bases: tuple[Any, ...]) -> type:
    return next(
        (kind for base in bases for kind in base.__mro__ if "__init_subclass__" in vars(kind) and kind is not object),
        object,
    )


def _without_hook(owner: type, *arguments: Any) -> type:
    """Make a class without a call of its bases' `__init_subclass__`, which is the one of `owner`. Raises TypeError
    where that cannot be replaced."""
    with _making:
        hook = vars(owner)["__init_subclass__"]
        setattr(owner, "__init_subclass__", classmethod(_do_nothing))  # noqa: B010 - mypy knows no assignment to it
        try:
            return types.new_class(*arguments)
        finally:
            setattr(owner, "__init_subclass__", hook)  # noqa: B010 - as above


def _do_nothing(_kind: type, /, **_: Any) -> None:
    """Stand in for `__init_subclass__`."""


_MAKERS |= {cloudpickle._make_skeleton_class: make, cloudpickle._make_skeleton_enum: make_enum}  # noqa: SLF001 - as above
