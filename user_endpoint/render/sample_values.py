"""Values that a person might give, made up from the administrator's JSON schema. For `mep check` alone.

Texts for a `pattern` come from `default`, `examples`, `enum` and the constants of the template, and a few are made from
the pattern itself (`pattern_texts`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jsonschema
import jsonschema_specifications  # type: ignore[import-untyped] # it has no stubs
import referencing.exceptions

from user_endpoint.render.pattern_texts import texts_for

MAX_CANDIDATES = 40
"""Most values tried for one variable."""
MAX_COMBINATIONS = 64
"""Most combinations tried for one branch."""
ABSENT = object()
"""Stands for a key that is not given."""
_MAX_DEPTH = 6

Constants = Mapping[str, Sequence[Any]]


def _distinct(values: Iterator[Any]) -> list[Any]:
    found: list[Any] = []
    for value in itertools.islice(values, 4 * MAX_CANDIDATES):
        if not any(type(value) is type(other) and value == other for other in found):
            found.append(value)
    return found[:MAX_CANDIDATES]


class SampleValues:
    """The values for a schema. `constants` are those that a template compares a variable of that name with.

    Those of the empty name are for every variable.
    """

    def __init__(self, schema: Mapping[str, Any] | None, constants: Constants) -> None:
        self._schema: Mapping[str, Any] = schema or {}
        self._constants = constants
        self._made: dict[str, list[str]] = {}
        self.valueless: dict[str, Any] = {}
        """The schemas of the keys inside objects and lists that no value was found for, by key (`[]`: an item)."""
        kind = jsonschema.validators.validator_for(self._schema, default=jsonschema.Draft202012Validator)
        self._validator = kind(self._schema, registry=jsonschema_specifications.REGISTRY)

    def of(self, name: str) -> list[Any]:
        """Return the values for the variable `name`, those first that the schema itself names. All are valid."""
        schema = self._schema.get("properties", {}).get(name, {})
        return self._valid(schema, self._candidates(name, schema, 0))

    def _valid(self, schema: Any, values: Iterator[Any]) -> list[Any]:
        validator = self._validator.evolve(schema=schema)
        try:
            return [value for value in _distinct(values) if validator.is_valid(value)]
        except (referencing.exceptions.Unresolvable, RecursionError):
            return []

    def _candidates(self, name: str, schema: Any, depth: int) -> Iterator[Any]:
        schema = self._resolved(schema)
        if depth > _MAX_DEPTH or not isinstance(schema, Mapping):
            yield "sample"
            return
        yield from (schema[key] for key in ("default", "const") if key in schema)
        for key in ("examples", "enum"):
            yield from schema[key] if isinstance(schema.get(key), list) else []
        if "enum" in schema or "const" in schema:
            return
        for key in ("anyOf", "oneOf", "allOf"):
            for part in schema.get(key, []):
                yield from self._candidates(name, {**_without(schema, key), **self._resolved(part)}, depth + 1)
        kinds = schema.get("type", "object" if "properties" in schema else ["string", "integer", "boolean"])
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            yield from self._of_type(name, kind, schema, depth)
        yield from self._constants.get(name, ())
        yield from self._constants.get("", ())

    def _resolved(self, schema: Any) -> Any:
        """Return the schema that a local `$ref` names, with the keys beside it."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#"):
                return schema
            found: Any = self._schema
            for part in str(schema["$ref"]).lstrip("#").strip("/").split("/"):
                key = part.replace("~1", "/").replace("~0", "~")
                found = found.get(key, {}) if key and isinstance(found, Mapping) else found
            schema = {**found, **_without(schema, "$ref")} if isinstance(found, Mapping) else found
        return schema

    def _of_type(self, name: str, kind: str, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        makers: dict[str, Callable[[], Iterator[Any]]] = {
            "integer": lambda: _numbers(schema, 1),
            "number": lambda: itertools.chain(_numbers(schema, 1), _numbers(schema, 0.5)),
            "boolean": lambda: iter((True, False)),
            "null": lambda: iter((None,)),
            "string": lambda: itertools.chain(self._patterned(schema), _texts(schema)),
            "array": lambda: self._lists(name, schema, depth),
            "object": lambda: self._objects(schema, depth),
        }
        return makers[kind]() if kind in makers else iter(())

    def _patterned(self, schema: Mapping[str, Any]) -> list[str]:
        pattern = schema.get("pattern")
        if not isinstance(pattern, str):
            return []
        key = json.dumps([pattern, schema.get("minLength"), schema.get("maxLength")])
        if key not in self._made:
            self._made[key] = texts_for(pattern, schema)
        return self._made[key]

    def _lists(self, name: str, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        items = self._valid(schema.get("items", {}), self._candidates(name, schema.get("items", {}), depth + 1))
        least, most = int(schema.get("minItems", 0)), int(schema.get("maxItems", MAX_CANDIDATES))
        if items:
            yield [items[0]] * max(1, least)
            yield items[: max(2, least)]
            yield from ([item, *items[: least - 1]] if least > 1 else [item] for item in items)
            yield list(itertools.islice(itertools.cycle(items), min(most, MAX_CANDIDATES)))
        else:
            self.valueless[f"{name}[]"] = schema.get("items")
        yield []

    def _objects(self, schema: Mapping[str, Any], depth: int) -> Iterator[Any]:
        properties = schema.get("properties", {})
        found = {key: self._valid(part, self._candidates(key, part, depth + 1)) for key, part in properties.items()}
        self.valueless |= {key: properties[key] for key, values in found.items() if not values}
        parts = {key: values for key, values in found.items() if values}
        required = [key for key in schema.get("required", []) if key in parts]
        yield from variations(parts, required)


def variations(parts: Mapping[str, Sequence[Any]], required: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield mappings: the least, all keys, each optional key alone and left out, and each value of each key."""
    least = {key: parts[key][0] for key in required}
    whole = {key: values[0] for key, values in parts.items()}
    yield least
    yield whole
    for key, values in parts.items():
        if key not in required:
            yield {**least, key: values[0]}
            yield _without(whole, key)
        for value in values[1:]:
            yield {**whole, key: value}
            yield {**least, key: value}


def combinations(
    parts: Mapping[str, Sequence[Any]], base: Mapping[str, Any], most: int = MAX_COMBINATIONS
) -> Iterator[dict[str, Any]]:
    """Yield `base` with combinations of values, of which ABSENT leaves a key out."""
    for values in itertools.islice(itertools.product(*parts.values()), most):
        config = {**base, **dict(zip(parts, values, strict=True))}
        yield {key: value for key, value in config.items() if value is not ABSENT}


def _without(mapping: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def _numbers(schema: Mapping[str, Any], step: float) -> Iterator[Any]:
    low = [schema["minimum"]] if "minimum" in schema else []
    low += [schema["exclusiveMinimum"] + step] if "exclusiveMinimum" in schema else []
    high = [schema["maximum"]] if "maximum" in schema else []
    high += [schema["exclusiveMaximum"] - step] if "exclusiveMaximum" in schema else []
    yield from low
    yield from high
    multiple = schema.get("multipleOf", 1)
    yield from (multiple, 0, 2 * multiple)
    for bound in low + high:
        yield (bound // multiple) * multiple
        yield (bound // multiple + 1) * multiple


def _texts(schema: Mapping[str, Any]) -> Iterator[str]:
    least, most = int(schema.get("minLength", 0)), schema.get("maxLength")
    for text in ("sample", "00:30:00", "1", "a@example.org", "2030-01-01", ""):
        fitting = text.ljust(least, "x")
        yield fitting if most is None else fitting[: int(most)]
