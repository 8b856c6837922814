"""`quoting: json`: variables as templates of Globus Compute know them, where each text comes as JSON, with its quotes.

There, the text of the template with such values in it is parsed as YAML. Here values still never meet the parser: only
their meaning is the same. A text that stands alone is read as YAML reads such a scalar: `"12"` is a text, and 12 (left
by `X[1:-1]`) a number. Inside double quotes its JSON escapes are resolved. Elsewhere it stays as it is, with quotes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from user_endpoint.render.pieces import Value
from user_endpoint.render.sandbox import PieceEnvironment

_TAG = "tag:yaml.org,2002:"
_TYPED = frozenset(f"{_TAG}{name}" for name in ("null", "bool", "int", "float"))


def quoted(data: Any) -> Any:
    """Return plain data with each text as JSON, and null as the text `null`."""
    if isinstance(data, Mapping):
        return {key: quoted(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [quoted(value) for value in data]
    if isinstance(data, str):
        return json.dumps(data)
    return "null" if data is None else data


def unquoted(text: str) -> str | None:
    """Return the text that a JSON text stands for; None if it is no JSON text."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, str) else None


@dataclass(frozen=True, slots=True)
class QuotedValue(Value):
    """The value of an expression in such a template."""

    @property
    def typed(self) -> Any:
        """The value as YAML would read it where it stands alone."""
        found = super(QuotedValue, self).typed
        if type(found) is not str or found is not self.data:
            return found
        inner = unquoted(found)
        return _as_yaml(found) if inner is None else inner

    @property
    def in_double_quotes(self) -> str:
        """The value as YAML would read it between double quotes."""
        text = self.text
        return text if '"' in text.replace('\\"', "") else unquoted(f'"{text}"') or text


def _as_yaml(text: str) -> Any:
    """Return a plain scalar as YAML 1.1 reads it, but a number with colons as text, as everywhere here."""
    loader = yaml.SafeLoader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # by the stubs
        if tag not in _TYPED or ":" in text:
            return text
        return loader.construct_object(yaml.ScalarNode(tag, text))
    except ValueError:
        return text
    finally:
        loader.dispose()


class JsonQuoting(PieceEnvironment):
    """A sandbox in which expressions give such values. `quoting_environment` combines it with another one."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        super().__init__(templates)
        self.filters["shell_escape"] = shell_escape

    @staticmethod
    def value(names: tuple[str, ...], data: Any) -> Any:
        """Return the result of an expression that reads `names`, as a piece."""
        piece = PieceEnvironment.value(names, data)
        return QuotedValue(piece.data, piece.names) if type(piece) is Value else piece


def shell_escape(value: Any) -> Any:
    """Filter: a text in JSON, quoted for a POSIX shell and in JSON again; anything else as it is."""
    inner = unquoted(value) if isinstance(value, str) else None
    return value if inner is None else json.dumps(shlex.quote(inner))


def quoting_environment(base: type[PieceEnvironment]) -> type[PieceEnvironment]:
    """Return `base` with the values of `quoting: json`."""
    return type(f"JsonQuoting{base.__name__}", (JsonQuoting, base), {})
