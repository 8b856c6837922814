"""Whatever a person sends, through whatever filter, test, operator or construct: the template's keys stay the same.

Each template is rendered once with harmless and once with hostile values. Either may be refused (a filter need not
take every value), but a document that comes out has exactly the keys that the template's author wrote.
"""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid
from user_endpoint.render.sandbox import PieceEnvironment
from user_endpoint.render.schema_fast_path import surely_valid
from user_endpoint.render.template import render
from user_endpoint.render.yaml_document import YamlInvalid, document_from

NASTY = [
    "x\nevil: 1",
    "x\n  evil: 1\n",
    "}, evil: {",
    "], evil: [",
    '", evil: "',
    "', evil: '",
    "\\",
    "- a\n- b",
    "? evil\n: 1",
    "# gone",
    "*engine",
    "&engine x",
    "!!map {evil: 1}",
    "<<: {evil: 1}",
    "---\nevil: 1",
    "...",
    "|\n  x",
    ">",
    "%TAG ! tag:evil",
    "{{ 7 * 7 }}{% set evil = 1 %}",
    "\u2028evil: 1",
    "\x85evil: 1",
    "\r\nevil: 1",
    "\x00\x07\ufeff",
    ":",
    ": ",
    ",",
    "v" + "0" * 32 + "n0z",
    "",
    "~",
    "null",
]
TEXTS = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.lists(
        st.sampled_from([*":-?|>{}[],&*!%@`'\"#\n\r\t \\<~=.0aZ", "\n\n  ", ": ", "- ", "evil: 1"]), max_size=12
    ).map("".join),
)
SCALARS = st.one_of(TEXTS, st.integers(-(10**20), 10**20), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)
FUZZ = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)

FILTER_ARGUMENTS = {
    "attr": ["'upper'", "X"],
    "batch": ["2", "2, X"],
    "default": ["X", "X, true"],
    "dictsort": ["", "false, 'value'"],
    "format": ["1", "X"],
    "groupby": ["'a'", "X"],
    "indent": ["", "2", "2, true, true", "X", "'  '", "2, X"],
    "join": ["", "': '", "X"],
    "map": ["'upper'", "'default', X", "attribute='a'"],
    "replace": ["'a', 'b'", "X, 'b: c'", "'x', X"],
    "round": ["", "2, 'ceil'"],
    "select": ["", "'string'"],
    "reject": ["", "'string'"],
    "selectattr": ["'a'"],
    "rejectattr": ["'a'"],
    "slice": ["2", "2, X"],
    "sum": ["", "start=X"],
    "tojson": ["", "2"],
    "trim": ["", "X", "'x'"],
    "truncate": ["5, true", "5, true, X, 0", "9"],
    "wordwrap": ["5", "5, true, X"],
    "xmlattr": [""],
    "shell_escape": [""],
}
TEST_ARGUMENTS = {
    "divisibleby": "(2)",
    "in": "(X)",
    "sameas": "(X)",
    **dict.fromkeys(
        ["eq", "equalto", "==", "ne", "!=", "lt", "<", "le", "<=", "gt", ">", "ge", ">=", "lessthan", "greaterthan"],
        "(X)",
    ),
}


def _filters() -> list[str]:
    found = []
    for name in sorted(PieceEnvironment({}).filters):
        if " " in name:
            name = name.split()[0]
        found += [f"X|{name}({arguments})" for arguments in FILTER_ARGUMENTS.get(name, [""])]
        found += [f"P|{name}({arguments})" for arguments in FILTER_ARGUMENTS.get(name, [""])]
    return sorted(set(found))


def _tests() -> list[str]:
    words = [name for name in sorted(PieceEnvironment({}).tests) if name.isidentifier()]
    return [f"X is {name}{TEST_ARGUMENTS.get(name, '')}" for name in words] + [
        f"P is {name}{TEST_ARGUMENTS.get(name, '')}" for name in words
    ]


OPERATORS = [
    *(f"X {operator} X" for operator in ["+", "-", "*", "/", "//", "%", "~", "==", "!=", "<", ">"]),
    *(f"X {operator} X" for operator in ["and", "or", "in", "not in"]),
    *("X + 'b: c'", "'k: ' + X", "'k: ' ~ X ~ '\\n'", "X * 3", "'%s' % X", "-X", "+X", "not X"),
    *("P + P", "P ~ X", "P[1:]", "P[0]", "P * 2", "P.upper()", "P.replace('a', X)", "P.split()", "P.format(X)"),
    *("X[0]", "X[:3]", "X.a", "X['a']", "[X, X]", "(X, P)", "{'k': X, 'p': P}", "[X][0]", "X if X else P"),
    *("X.upper()", "X.items()", "X.keys()|list", "X.format(X)", "X.join(['a', 'b'])", "X.splitlines()", "X.split(':')"),
    *("range(3)|join(X)", "dict(a=X)", "cycler(X, 1).next()", "joiner(X)()", "namespace(a=X).a", "m(X)", "m(m(X))"),
]
EXPRESSIONS = sorted({*_filters(), *_tests(), *OPERATORS})

POSITIONS = """
one: {{ E }}
two: "{{ E }}"
three: '- {{ E }}'
four: [{{ E }}, {inner: {{ E }}, other: 1}]
five:
  - {{ E }}
  - sub: a {{ E }} b
    more: 1
six: |
  first
  {{ E }}
seven: >-
  {{ E }}
eight: {{ E }}  # {{ E }}
last: end
"""
KEYS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "last"]
WRAPPINGS = {
    "plainly": "BODY",
    "a macro": "{% macro body() %}BODY{% endmacro %}{{ body() }}",
    "a macro's caller": "{% macro outer() %}{{ caller() }}{% endmacro %}{% call outer() %}BODY{% endcall %}",
    "a set block": "{% set body %}BODY{% endset %}{{ body }}",
    "a trimmed set block": "{% set body %}BODY{% endset %}{{ body|trim }}",
    "a filter block": "{% filter trim %}BODY{% endfilter %}",
    "an include": "{% include 'part' %}",
    "a parent's block": "{% extends 'base' %}{% block body %}{{ super() }}{% endblock %}",
    "a loop": "{% for i in [1] %}BODY{% endfor %}",
}
LIBRARY = "{% macro m(v) %}[{{ v }}]{% endmacro %}{% set P %}a: {{ X }}\nb{% endset %}"


def shape(source: str, value: object, wrapping: str = "BODY") -> tuple[Any, ...] | None:
    """The keys of a document, or None where the template cannot be rendered with this value."""
    body = LIBRARY + source
    templates = {
        "main": wrapping.replace("BODY", body),
        "part": body,
        "base": "{% block body %}" + body + "{% endblock %}",
    }
    try:
        document = document_from(render(templates, "main", {"X": value}, schema=None, config={"X": value})).data
    except (EndpointMisconfigured, UserConfigInvalid, YamlInvalid):
        return None
    assert isinstance(document, dict)
    four, five = document["four"], document["five"]
    return list(document), len(four), list(four[1]), four[1]["other"], len(five), list(five[1]), document["last"]


EXPECTED = (KEYS, 2, ["inner", "other"], 1, 2, ["sub", "more"], "end")


@pytest.mark.parametrize("expression", EXPRESSIONS)
@FUZZ
@given(value=VALUES)
@example(value="x\nevil: 1")
@example(value={"evil": "x\nevil: 1", "a": "}"})
@example(value=["x\nevil: 1", {"a": ": "}])
@example(value=3)
def test_no_value_changes_the_keys(expression: str, value: object) -> None:
    assume(not (isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1000))  # text times number
    assert shape(POSITIONS.replace("E", expression), value) in (EXPECTED, None)


@pytest.mark.parametrize(
    "expression", ["X", "X|upper", "X ~ ': ' ~ X", "m(X)", "X|tojson", "X|shell_escape", "X|default('a')"]
)
@pytest.mark.parametrize("wrapping", WRAPPINGS.values(), ids=WRAPPINGS)
@FUZZ
@given(value=VALUES)
def test_no_value_changes_the_keys_through_any_construct(wrapping: str, expression: str, value: object) -> None:
    found = shape(POSITIONS.replace("E", expression), value, wrapping)
    assert found == EXPECTED or (found is None and shape(POSITIONS.replace("E", expression), value) is None)


@settings(max_examples=300, deadline=None)
@given(value=VALUES)
def test_a_value_is_itself_wherever_it_stands_alone(value: object) -> None:
    assume("nan" not in repr(value))  # which is not itself
    source = "one: {{ X }}\nlist: [{{ X }}]\n"
    document = document_from(render({"main": source}, "main", {"X": value}, schema=None, config={})).data
    assert document == {"one": value, "list": [value]}


@settings(max_examples=300, deadline=None)
@given(
    source=st.lists(
        st.sampled_from(
            ["{{ X }}", "a", ": ", "\n", "  ", "- ", "'", '"', "[", "]", "{", "}", ", ", "|", "#", "&", "*", "!", "? "]
        ),
        max_size=14,
    ).map("".join)
)
def test_any_layout_has_the_same_keys_for_any_value(source: str) -> None:
    def keys(data: object) -> object:
        if isinstance(data, dict):
            return {key: keys(part) for key, part in data.items()}
        return [keys(part) for part in data] if isinstance(data, list) else None

    def outcome(value: str) -> object:
        try:
            return keys(document_from(render({"main": source}, "main", {"X": value}, schema=None, config={})).data)
        except (EndpointMisconfigured, YamlInvalid):
            return "refused"

    assert outcome("harmless") == outcome("x\nevil: 1\n- }") == outcome("': {")


@settings(max_examples=300, deadline=None)
@given(source=st.text(alphabet="{}% #-|X'\"\n :[]()azP.,~+=", max_size=40))
def test_a_garbled_template_is_refused_in_good_order(source: str) -> None:
    with contextlib.suppress(EndpointMisconfigured, UserConfigInvalid, YamlInvalid):
        document_from(render({"main": source}, "main", {"X": "a"}, schema=None, config={}))


KINDS = ["string", "integer", "number", "boolean", "null", "array", "object"]
SCHEMA_PARTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([*KINDS, ["string", "null"]]),
        "enum": st.lists(SCALARS, min_size=1, max_size=3),
        "const": SCALARS,
        "minimum": st.integers(-3, 3),
        "exclusiveMaximum": st.integers(-3, 3),
        "minLength": st.integers(0, 3),
        "maxLength": st.integers(0, 3),
        "pattern": st.sampled_from(["^a", "b$", ".", "^[0-9]+$"]),
        "maxItems": st.integers(0, 2),
        "items": st.sampled_from([{"type": "string"}, True, {"minimum": 1}]),
        "description": st.text(max_size=3),
    },
)  # fmt: skip
SCHEMAS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("object"),
        "properties": st.dictionaries(st.sampled_from("ab"), SCHEMA_PARTS, max_size=2),
        "additionalProperties": st.one_of(st.booleans(), SCHEMA_PARTS),
        "required": st.lists(st.sampled_from("ab"), unique=True),
    },
)
SMALL = st.one_of(
    st.sampled_from(["", "a", "ab", "12", "b"]), st.integers(-4, 4), st.floats(-4, 4), st.booleans(), st.none()
)


@settings(max_examples=500, deadline=None)
@given(
    schema=SCHEMAS,
    value=st.dictionaries(st.sampled_from("abc"), st.one_of(SMALL, st.lists(SMALL, max_size=3)), max_size=3),
)
def test_surely_valid_says_yes_only_where_jsonschema_does(schema: dict[str, Any], value: dict[str, Any]) -> None:
    import jsonschema

    if surely_valid(schema, value):
        jsonschema.Draft202012Validator.check_schema(schema)
        assert jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_placeholder_cannot_be_guessed_or_repeated() -> None:
    value = base64.b16encode(b"x" * 16).decode()
    document = document_from(
        render({"main": "a: {{ X }}{{ X }}"}, "main", {"X": f"v{value}n0z"}, schema=None, config={})
    )
    assert document.data == {"a": f"v{value}n0zv{value}n0z"}
