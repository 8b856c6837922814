"""The commands endpoints and describe."""

from __future__ import annotations

import argparse
import json
from typing import Any

from mep_sdk.tool import output
from mep_sdk.tool.logins import client_of

_BY_TYPE: dict[str, Any] = {"integer": 1, "number": 1.0, "boolean": True, "array": [], "object": {}, "null": None}
_LIMITS = ("enum", "const", "minimum", "maximum", "minLength", "maxLength", "pattern")


def endpoints(options: argparse.Namespace) -> int:
    """List endpoints: one's own and, without --mine, those that are open to all."""
    found = client_of(options).get_endpoints(None if options.mine else "any")
    if options.json:
        output.as_json(found)
        return 0
    rows = [(each["uuid"], each["name"], each["display_name"], each.get("alias"), each["multi_user"]) for each in found]
    output.table(("id", "name", "display name", "alias", "multi-user"), rows)
    return 0


def describe(options: argparse.Namespace) -> int:
    """Show one endpoint."""
    client = client_of(options)
    endpoint_id = client.endpoint_id_of(options.endpoint)
    found, state = client.get_endpoint_metadata(endpoint_id), client.get_endpoint_status(endpoint_id)
    schema = found.get("user_config_schema") or {}
    example = example_of(schema)
    if options.json:
        output.as_json({**found, "status": state.get("status"), "example_config": example})
        return 0
    allowed = found.get("allowed_functions")
    output.fields(
        {
            "id": endpoint_id,
            "name": found.get("name"),
            "display name": found.get("display_name"),
            "alias": found.get("alias"),
            "status": state.get("status"),
            "multi-user": found.get("multi_user"),
            "open to all": found.get("public"),
            "locked": found.get("locked"),
            "functions": "any" if allowed is None else f"{len(allowed)} allowed",
        }
    )
    if rows := schema_rows(schema):
        output.say("\nuser_endpoint_config:")
        output.table(("key", "type", "required", "default", "limits", "meaning"), rows)
    output.say(f"\nexample:\n  Executor({endpoint_id!r}, user_endpoint_config={example!r})")
    return 0


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
