"""Is a value surely valid: a JSON schema of the usual plain kind, checked without loading a validator.

Loading jsonschema takes 30 ms, a quarter of a cold start. Here "yes" is said only where the whole schema
consists of keywords known here and every one of them holds, as jsonschema would find too (a test compares
them). Everything else is left to jsonschema: this never refuses anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_DRAFTS = frozenset(
    {
        "https://json-schema.org/draft/2020-12/schema",
        "https://json-schema.org/draft/2019-09/schema",
        "http://json-schema.org/draft-07/schema#",
        "http://json-schema.org/draft-07/schema",
    }
)
_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_SCALARS = (str, int, float, bool, type(None))


def surely_valid(schema: Any, value: Any) -> bool:
    """Tell whether `value` is valid against `schema` beyond doubt."""
    if not isinstance(schema, Mapping) or schema.get("$schema", next(iter(_DRAFTS))) not in _DRAFTS:
        return False
    inner = {key: part for key, part in schema.items() if key not in ("$schema", "$id")}
    return _is_simple(inner) and _holds(inner, value)


# --- is every keyword known, and as it should be ----------------------------------------------------------


def _text(part: Any) -> bool:
    return isinstance(part, str)


def _number(part: Any) -> bool:
    return isinstance(part, int | float) and not isinstance(part, bool)


def _count(part: Any) -> bool:
    return isinstance(part, int) and not isinstance(part, bool) and part >= 0


def _pattern(part: Any) -> bool:
    try:
        re.compile(part)
    except (re.error, TypeError):
        return False
    return True


def _type(part: Any) -> bool:
    names = part if isinstance(part, list) else [part]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _choices(part: Any) -> bool:
    return isinstance(part, list) and bool(part) and all(isinstance(choice, _SCALARS) for choice in part)


def _names(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(name, str) for name in part) and len(set(part)) == len(part)


def _schemas(part: Any) -> bool:
    return isinstance(part, dict) and all(_is_simple(inner) for inner in part.values())


def _is_simple(schema: Any) -> bool:
    if isinstance(schema, bool):
        return True
    return isinstance(schema, Mapping) and all(
        keyword in _KEYWORDS and _KEYWORDS[keyword](part) for keyword, part in schema.items()
    )


def _anything(part: Any) -> bool:
    return True


_KEYWORDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("$comment", "title", "description"), _text),
    **dict.fromkeys(("default", "const"), _anything),
    "examples": lambda part: isinstance(part, list),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _count),
    **dict.fromkeys(("additionalProperties", "items"), _is_simple),
    "pattern": _pattern,
    "type": _type,
    "enum": _choices,
    "required": _names,
    "properties": _schemas,
}


# --- does every keyword hold ------------------------------------------------------------------------------


def _holds(schema: Any, value: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    return (
        _holds_any_type(schema, value)
        and _holds_number(schema, value)
        and (not isinstance(value, str) or _holds_text(schema, value))
        and (not isinstance(value, list) or _holds_list(schema, value))
        and (not isinstance(value, dict) or _holds_mapping(schema, value))
    )


def _same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and isinstance(left, _SCALARS) and left == right


def _holds_any_type(schema: Mapping[str, Any], value: Any) -> bool:
    names = schema.get("type", list(_TYPES))
    return (
        any(_TYPES[name](value) for name in (names if isinstance(names, list) else [names]))
        and ("const" not in schema or _same(schema["const"], value))
        and ("enum" not in schema or any(_same(choice, value) for choice in schema["enum"]))
    )


def _holds_number(schema: Mapping[str, Any], value: Any) -> bool:
    if not _number(value):
        return True
    return bool(
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def _holds_text(schema: Mapping[str, Any], value: str) -> bool:
    return (
        schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        and re.search(schema.get("pattern", ""), value) is not None
    )


def _holds_list(schema: Mapping[str, Any], value: list[Any]) -> bool:
    return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)) and all(
        _holds(schema.get("items", True), item) for item in value
    )


def _holds_mapping(schema: Mapping[str, Any], value: dict[str, Any]) -> bool:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(name in value for name in schema.get("required", [])) and all(
        _holds(known.get(key, others), part) for key, part in value.items()
    )
