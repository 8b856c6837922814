"""Template text and values as distinct pieces, from the first expression to the last.

This module keeps a person's values away from the YAML parser: everything not marked as the template's own
text (`Text`) is a value. The result of an operator, filter or test is a plain Python object, hence a value.
Any output that a new version of the template engine emits in an unforeseen way is a value too.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Self

from jinja2.runtime import Undefined

MAX_ITEMS = 100_000
"""Most items in one list or mapping that an expression gives."""


_LISTS: Final = (list, tuple, set, frozenset, range, Iterator, KeysView, ValuesView, ItemsView)


class UnusableValue(ValueError):
    """An expression gives something that is neither text, number, list nor mapping: {kind}."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"an expression gives {kind}, which cannot stand in a configuration")


class Text(str):
    """Text that stands in the template itself, outside of any expression."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Value:
    """The value of one expression: plain data, never template text.

    `names` are the variables that the expression reads. If the value is refused, they tell where it came from.
    """

    data: Any
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The value as it reads inside a longer text."""
        return str(self.data)

    @property
    def in_double_quotes(self) -> str:
        """The value as it reads inside a text that stands in double quotes."""
        return self.text

    @property
    def typed(self) -> Any:
        """The value as it is where it stands alone."""
        return self.data._data if isinstance(self.data, Json) else self.data  # noqa: SLF001 - see pieces_of


class Json(str):
    """The result of the `tojson` filter: JSON inside a text, the value itself where it stands alone."""

    _data: Any

    def __new__(cls, text: str, data: Any) -> Self:
        """`text` is the JSON of `data`, which is plain."""
        self = super().__new__(cls, text)
        self._data = data
        return self


class Fragment(str):
    """The output of a macro, block, include, `caller()`, `super()` or block set: text that knows its pieces.

    To an operator or filter it is ordinary text; their result is a value.
    """

    _pieces: tuple[Text | Value, ...]

    def __new__(cls, pieces: tuple[Text | Value, ...]) -> Self:
        """Join `pieces`, which are kept."""
        self = super().__new__(cls, "".join(piece if isinstance(piece, Text) else piece.text for piece in pieces))
        self._pieces = pieces
        return self


def pieces_of(fragment: Fragment) -> tuple[Text | Value, ...]:
    """Return the pieces of `fragment`, in order."""
    return fragment._pieces  # noqa: SLF001 - the underscore hides it from templates, not from this module


def plain(data: Any) -> Any:
    """Return `data` as None, bool, int, float, str, list and dict with text keys, all of the exact types.

    Raises UnusableValue, and jinja2's UndefinedError for an undefined value inside.
    """
    if data is None or isinstance(data, bool):
        return data
    for exact in (str, int, float):
        if isinstance(data, exact):
            return exact.__str__(data) if exact is str else exact(data)
    if isinstance(data, Mapping):
        return {_key(key): plain(value) for key, value in _limited(data.items())}
    if isinstance(data, _LISTS):
        return [plain(value) for value in _limited(data)]
    if isinstance(data, Undefined):
        str(data)  # raises, with the variable's name
    raise UnusableValue(f"a {type(data).__name__}")


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise UnusableValue(f"a mapping with a key of type {type(key).__name__}")
    return str.__str__(key)


def _limited(items: Iterable[Any]) -> list[Any]:
    taken = list(islice(items, MAX_ITEMS + 1))
    if len(taken) > MAX_ITEMS:
        raise UnusableValue(f"more than {MAX_ITEMS} items")
    return taken
