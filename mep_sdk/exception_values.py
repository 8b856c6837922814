"""Exceptions taken apart and made again without their own `__init__` and `__new__`, which may want other arguments.

pickle calls an exception's class with its `args`. Classes that add to them, or take them by keyword, cannot be made in
that way. Only the built-in class beneath, which keeps state of its own (OSError, UnicodeDecodeError), is called here.
"""

from __future__ import annotations

import types
from typing import Any

_HEAP_TYPE = 1 << 9
_args = BaseException.__dict__["args"]
_attributes = BaseException.__dict__["__dict__"]
_mro = type.__dict__["__mro__"]
_flags = type.__dict__["__flags__"]


def built_in_base(kind: type) -> Any:
    """Return the nearest class of the interpreter's own that an exception's class is made from."""
    return next(each for each in _mro.__get__(kind) if not _flags.__get__(each) & _HEAP_TYPE)


def needs_parts(kind: type) -> bool:
    """Return whether a class is an exception's that pickle makes by a call with `args`, of its own `__init__` or
    `__new__`."""
    if BaseException not in _mro.__get__(kind):
        return False
    base = built_in_base(kind)
    by_args = kind.__reduce__ is base.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__  # type: ignore[comparison-overlap]
    own = kind.__init__ is not base.__init__ or kind.__new__ is not base.__new__  # type: ignore[misc]  # of the class
    return by_args and own and kind.__setstate__ is base.__setstate__  # type: ignore[attr-defined]  # of BaseException


def parts(error: BaseException) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the built-in class, and all attributes."""
    reduced = built_in_base(type(error)).__reduce__(error)
    state = reduced[2] if len(reduced) > 2 and type(reduced[2]) is dict else {}
    return reduced[1], {**state, **attributes_of(error)}


def attributes_of(error: BaseException) -> dict[str, Any]:
    """Return an exception's own attributes, those in slots included."""
    found = dict(_attributes.__get__(error))
    for kind in _mro.__get__(type(error)):
        for name, member in list(type.__dict__["__dict__"].__get__(kind).items()):
            if type(member) is types.MemberDescriptorType and _flags.__get__(kind) & _HEAP_TYPE:
                try:
                    found[name] = member.__get__(error)
                except AttributeError:  # it has no value
                    continue
    return found


def make(kind: Any, args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    """Return an exception of this class with these parts. The class may be frozen, or have slots."""
    base = built_in_base(kind)
    made: BaseException = base.__new__(kind, *args)
    base.__init__(made, *args)
    own = _attributes.__get__(made)
    for name, value in attributes.items():
        if isinstance(getattr(kind, name, None), types.MemberDescriptorType):
            object.__setattr__(made, name, value)
        else:
            own[name] = value
    return made
