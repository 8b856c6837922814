"""Pickles of functions and classes with source text in place of code objects, which any Python version can load.

All else is as in by_value: closures, defaults, globals and attributes travel as values. Methods that `dataclasses` and
`namedtuple` write have no source text; the other side writes them again. Called by encoding.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import inspect
import sys
import types
import typing
from typing import Any

from mep_sdk import by_value, classes_by_value, code_source

_GENERATED_FILE = "<string>"
_FIELD_OPTIONS = ("default", "default_factory", "init", "repr", "hash", "compare", "kw_only")
_CLASS_OPTIONS = ("init", "repr", "eq", "order", "unsafe_hash", "frozen", "match_args")
_WRITTEN = frozenset({"__dataclass_fields__", "__dataclass_params__", "__replace__"})
"""Attributes that `dataclass` sets."""
_OF_NAMED_TUPLES = frozenset(
    {
        *("__new__", "_make", "_replace", "__replace__", "_asdict", "__getnewargs__"),
        *("__slots__", "_fields", "_field_defaults", "__match_args__"),
    }
)
_ANNOTATIONS = frozenset(
    {*("__annotate__", "__annotate_func__", "__annotations__", "__annotations_cache__", "__classdictcell__")}
)


class SourcePickler(by_value.Pickler):
    """Raises code_source.SourceUnknown for a function without source text."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how to rebuild `obj`."""
        if type(obj) is types.CodeType:
            return code_source.load, tuple(code_source.source_of(obj))
        if type(obj) is typing.ForwardRef:  # it holds code of its own
            return forward_ref, (obj.__forward_arg__,)
        if type(obj) is types.UnionType and sys.version_info >= (3, 14):
            return union, (obj.__args__,)
        made = super().reducer_override(obj)
        if type(made) is not tuple or made[-1] is not classes_by_value.set_state:
            return made
        made = _with_annotations(obj, made)
        if obj.__bases__ == (tuple,) and "_field_defaults" in vars(obj):
            return _named_tuple_reduction(obj, made)
        return _dataclass_reduction(obj, made) if "__dataclass_params__" in vars(obj) else made


class LocalSourcePickler(SourcePickler):
    """The same, where modules that are not installed travel by value."""

    local = True


def forward_ref(text: str) -> Any:
    """Return the annotation with this text. The class has another module in Python 3.14."""
    return typing.ForwardRef(text)


def union(kinds: tuple[Any, ...]) -> Any:
    """Return the union of these types. Before Python 3.14, its class has no subscripts."""
    return typing.Union[kinds]  # noqa: UP007 - a type may be a forward reference


def _with_annotations(kind: Any, made: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how to make a class with its annotations as values: Python 3.14 keeps a function that gives them."""
    if sys.version_info < (3, 14):
        return made
    annotationlib = importlib.import_module("annotationlib")
    attributes, slots = made[2]
    kept = {key: value for key, value in attributes.items() if key not in _ANNOTATIONS}
    found = annotationlib.get_annotations(kind, format=annotationlib.Format.FORWARDREF)
    return (*made[:2], (kept | {"__annotations__": found} if found else kept, slots), *made[3:])


def _named_tuple_reduction(kind: Any, made: tuple[Any, ...]) -> tuple[Any, ...]:
    attributes, slots = made[2]
    kept = {
        key: value
        for key, value in attributes.items()
        if key not in _OF_NAMED_TUPLES and (key != "__repr__" or value.__module__ != collections.__name__)
    }
    tracker, namespace = made[1][4], made[1][3]
    arguments = (kind.__name__, kind._fields, kind.__new__.__defaults__, tracker)
    return make_named_tuple, arguments, (namespace | kept, slots), None, None, classes_by_value.set_state


def make_named_tuple(name: str, fields: tuple[str, ...], defaults: Any, tracker: str) -> Any:
    """Return the named tuple with this tracker, as classes_by_value.make does."""
    known = classes_by_value.known(tracker)
    return known or classes_by_value.tracked(collections.namedtuple(name, fields, defaults=defaults), tracker)  # noqa: PYI024 - its types are not known


def _dataclass_reduction(kind: Any, made: tuple[Any, ...]) -> tuple[Any, ...]:
    attributes, slots = made[2]
    kept = {key: value for key, value in attributes.items() if key not in _WRITTEN and not _is_generated(value)}
    if kept.get("__hash__", kept) is None:
        del kept["__hash__"]
    params = kind.__dataclass_params__
    options = {name: getattr(params, name) for name in _CLASS_OPTIONS if hasattr(params, name)}
    fields = {each.name: (_kind_of(each) == "_FIELD_INITVAR", _field_options(each)) for each in _own_fields(kind)}
    return (*made[:2], (kept, slots, options, fields), None, None, set_dataclass_state)


def _is_generated(value: Any) -> bool:
    function = inspect.unwrap(value) if isinstance(value, types.FunctionType) else None
    return isinstance(function, types.FunctionType) and function.__code__.co_filename == _GENERATED_FILE


def _own_fields(kind: Any) -> list[Any]:
    """Return the fields that a class adds to those of its bases, variables of the class excepted."""
    own = inspect.get_annotations(kind)
    found = [field for name, field in kind.__dataclass_fields__.items() if name in own]
    return [each for each in found if _kind_of(each) != "_FIELD_CLASSVAR"]


def _kind_of(field: Any) -> str:
    return str(field._field_type.name)  # noqa: SLF001 - there is no public way


def _field_options(field: Any) -> dict[str, Any]:
    given = {name: getattr(field, name) for name in _FIELD_OPTIONS} | {"metadata": dict(field.metadata)}
    return {name: value for name, value in given.items() if value is not dataclasses.MISSING}


def set_dataclass_state(kind: Any, state: Any) -> Any:
    """Set the attributes of a copy of a dataclass, and write its methods again."""
    attributes, slots, options, fields = state
    if kind not in classes_by_value.copies:
        return kind
    is_complete = "__dataclass_params__" in vars(kind)
    classes_by_value.set_state(kind, (attributes, slots))
    if is_complete:
        return kind
    before = {name: vars(kind)[name] for name in fields if name in vars(kind)}
    for name, (_, given) in fields.items():
        setattr(kind, name, dataclasses.field(**given))
    own = inspect.get_annotations(kind)
    # dataclass looks text up in the class's module, which is not here.
    kind.__annotations__ = {
        name: dataclasses.InitVar(object) if is_init else object for name, (is_init, _) in fields.items()
    }
    dataclasses.dataclass(**options)(kind)
    kind.__annotations__ = own
    for name in fields:
        kind.__dataclass_fields__[name].type = own[name]
        if options["init"] and name in kind.__init__.__annotations__:
            kind.__init__.__annotations__[name] = own[name]
    for name, value in before.items():  # members for slots, and defaults that were changed since
        setattr(kind, name, value)
    return kind
