"""What a person needs to know of an endpoint before they use it, as Client.describe and `mep-sdk describe` give it."""

from __future__ import annotations

import json
from typing import Any

_BY_TYPE: dict[str, Any] = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}, "null": None}
_LIMITS = ("enum", "const", "minimum", "maximum", "minLength", "maxLength", "pattern")


def described(metadata: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    """Return one description of what the relay says of an endpoint."""
    schema = metadata.get("user_config_schema") or {}
    heads = ("key", "type", "required", "default", "limits", "meaning")
    return {
        **metadata,
        "status": status.get("status"),
        "worker_pythons": status.get("worker_pythons") or [],
        "config_keys": [dict(zip(heads, row, strict=True)) for row in schema_rows(schema)],
        "example_config": example_of(schema),
    }


def schema_rows(schema: dict[str, Any]) -> list[tuple[object, ...]]:
    """Return a row for each property of a JSON schema: key, type, required, default, limits, description."""
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    return [
        (
            name,
            _type_of(rule),
            name in needed,
            json.dumps(rule["default"]) if "default" in rule else "",
            ", ".join(f"{key} {json.dumps(rule[key])}" for key in _LIMITS if key in rule),
            rule.get("description", ""),
        )
        for name, rule in _properties(schema)
    ]


def example_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return values that a JSON schema may take: defaults, else its examples, else the least of each type."""
    return {name: _value_of(rule) for name, rule in _properties(schema)}


def _properties(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = schema.get("properties")
    if not isinstance(found, dict):
        return []
    return [(name, rule if isinstance(rule, dict) else {}) for name, rule in found.items()]


def _type_of(rule: dict[str, Any]) -> str:
    kind = rule.get("type", "any")
    return "|".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _value_of(rule: dict[str, Any]) -> Any:
    for key in ("default", "const"):
        if key in rule:
            return rule[key]
    for key in ("examples", "enum"):
        if isinstance(rule.get(key), list) and rule[key]:
            return rule[key][0]
    kind = _type_of(rule).partition("|")[0]
    if kind in ("integer", "number"):
        return rule.get("minimum", rule.get("maximum", _BY_TYPE[kind]))
    if kind == "object":
        return example_of(rule)
    return _BY_TYPE.get(kind, "text")
