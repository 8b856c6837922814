"""Checks of user_endpoint_config: same verdict as plain jsonschema, on hostile schemas a quick refusal."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from unittest.mock import Mock

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mep_wire.errors import BodyInvalid, UserConfigInvalid, UserConfigReserved
from relay.api import user_config_check
from relay.api.user_config_check import KEPT, MAX_PASSED, UserConfigChecks, check_schema

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "ab", "B", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "xa"]), inner, max_size=3),
    max_leaves=8,
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": ["integer", "string", "null"], "minimum": 0, "pattern": "^a"},
        "b": {"type": "array", "uniqueItems": True, "items": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/s"}]}},
    },
    "patternProperties": {"^x": {"type": "object", "additionalProperties": {"type": "boolean"}}},
    "additionalProperties": False,
    "$defs": {"s": {"type": "string", "maxLength": 1}},
}


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "xa"]), VALUES, max_size=3))
def test_the_verdict_is_that_of_jsonschema(config: dict[str, Any]) -> None:
    plain = jsonschema.Draft202012Validator(SCHEMA).is_valid(config)
    try:
        asyncio.run(UserConfigChecks().check("e", SCHEMA, config))
        ours = True
    except UserConfigInvalid as error:
        ours = False
        assert error.fields["key"]
    assert ours == plain


def test_nested_keys_are_named() -> None:
    with pytest.raises(UserConfigInvalid, match=r": b\.1: "):
        asyncio.run(UserConfigChecks().check("e", SCHEMA, {"b": [1, "long"]}))


def test_a_refused_key_comes_with_the_allowed_ones() -> None:
    schema = {"properties": {"max_workers": {}, "account": {}}, "additionalProperties": False}
    with pytest.raises(UserConfigInvalid, match="project: this key is not allowed; allowed: max_workers, account"):
        asyncio.run(UserConfigChecks().check("e", schema, {"project": "x"}))
    with pytest.raises(UserConfigInvalid, match=r"c: this key is not allowed \["):  # patterns allow others too
        asyncio.run(UserConfigChecks().check("e", SCHEMA, {"c": 1}))


def test_another_draft_means_what_it_says() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "properties": {"n": {"maximum": 3}}}
    draft4["properties"]["n"]["exclusiveMaximum"] = True  # type: ignore[index]
    check_schema(draft4)
    with pytest.raises(UserConfigInvalid):
        asyncio.run(UserConfigChecks().check("e", draft4, {"n": 3}))
    with pytest.raises(BodyInvalid):
        check_schema({**draft4, "$schema": "https://json-schema.org/draft/2020-12/schema"})


def test_reserved_names_come_before_the_schema() -> None:
    checks = UserConfigChecks()
    for name in ("mapped_identity", "_GC", "_MEP", "namespace"):
        with pytest.raises(UserConfigReserved, match=name):
            asyncio.run(checks.check("e", None, {name: {}}))
    asyncio.run(checks.check("e", None, {"anything": ["goes"]}))


def test_a_changed_schema_is_noticed_and_memory_is_bounded() -> None:
    checks = UserConfigChecks()
    asyncio.run(checks.check("e", {"properties": {"a": {"type": "string"}}}, {"a": "x"}))
    with pytest.raises(UserConfigInvalid):
        asyncio.run(checks.check("e", {"properties": {"a": {"type": "integer"}}}, {"a": "x"}))
    for number in range(KEPT + 10):
        asyncio.run(checks.check(f"e{number}", {}, {}))
    assert len(checks._kept) == KEPT


def test_a_configuration_that_has_passed_is_not_checked_again() -> None:
    checks = UserConfigChecks()
    schema = {"properties": {"a": {"maximum": 3}}}
    asyncio.run(checks.check("e", schema, {"a": 1}))
    checks._kept["e"].validator = Mock(iter_errors=Mock(side_effect=AssertionError))
    asyncio.run(checks.check("e", schema, {"a": 1}))
    for _ in range(2):
        with pytest.raises(UserConfigInvalid):
            asyncio.run(checks.check("f", schema, {"a": 4}))  # one that has not passed is checked
    for number in range(2 * MAX_PASSED):
        asyncio.run(checks.check("f", schema, {"a": -number}))
    assert len(checks._kept["f"].passed) <= MAX_PASSED


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.org/schema.json"},
        {"properties": {"a": {"items": {"$ref": "other.json#/x"}}}},
        {"$ref": "#/$defs/missing"},
        {"$dynamicRef": "https://example.org/x#y"},
        {"properties": {"a": {"pattern": "("}}},
        {"patternProperties": {"(?=x)": {}}},
        {"properties": {"a": 3}},
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    ],
)
def test_schemas_that_are_not_taken(schema: dict[str, Any]) -> None:
    with pytest.raises(BodyInvalid):
        check_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        SCHEMA,
        {"$id": "https://example.edu/own", "properties": {"a": {"$ref": "/own#/$defs/x"}}, "$defs": {"x": {}}},
        {"properties": {"$ref": {"type": "string"}}, "const": {"$ref": "elsewhere"}},
        {"properties": {"next": {"$ref": "#"}}},
        {"properties": {"of": {"$ref": "https://json-schema.org/draft/2020-12/schema"}}},
    ],
)
def test_schemas_that_are(schema: dict[str, Any]) -> None:
    check_schema(schema)


def costly() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    doubling = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    wide = {"properties": {"a": {"items": {"anyOf": [{"const": n} for n in range(3000)]}}}}
    return [
        ({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**doubling, "d40": {}}}, {"a": 1}),
        (wide, {"a": ["x"] * 10_000}),
        ({"properties": {"a": {"pattern": "^(a+)+$"}}}, {"a": "a" * 50_000 + "b"}),
        ({"properties": {"a": {"uniqueItems": True}}}, {"a": [[n] if n % 2 else n for n in range(8000)] + [0]}),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, {"a": 1}),
    ]


@pytest.mark.parametrize("case", range(5))
def test_a_costly_check_is_a_quick_refusal(case: int) -> None:
    schema, config = costly()[case]
    before = time.monotonic()
    with pytest.raises(UserConfigInvalid):
        asyncio.run(UserConfigChecks().check("e", schema, config))
    assert time.monotonic() - before < 30


def test_while_a_costly_check_runs_the_event_loop_goes_on() -> None:
    async def run() -> int:
        schema, config = costly()[0]
        check = asyncio.ensure_future(UserConfigChecks().check("e", schema, config))
        turns = 0
        while not check.done():
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(UserConfigInvalid):
            check.result()
        return turns

    assert asyncio.run(run()) > 10  # in the loop's thread, it is done after the first turn


def test_costly_checks_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_config_check, "MAX_SLOW", 2)

    async def run() -> list[str]:
        checks, (schema, config) = UserConfigChecks(), costly()[0]
        ends = await asyncio.gather(*(checks.check("e", schema, config) for _ in range(3)), return_exceptions=True)
        return sorted(type(end).__name__ for end in ends)

    assert asyncio.run(run()) == ["RelayBusy", "UserConfigInvalid", "UserConfigInvalid"]
