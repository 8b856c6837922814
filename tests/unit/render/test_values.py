"""Values of a template's expressions: typed where they stand alone, text inside a text, never YAML."""

from __future__ import annotations

from typing import Any

import pytest

from user_endpoint.render.template import render
from user_endpoint.render.yaml_document import document_from


def rendered(source: str | dict[str, str], **variables: Any) -> Any:
    """The document that a template gives."""
    templates = source if isinstance(source, dict) else {"main": source}
    return document_from(render(templates, "main", variables, schema=None, config=variables)).data


@pytest.mark.parametrize(
    "value",
    [
        *("plain", "", " ", "null", "true", "~", "12", "1e3", "0x1f", "10:30:00", "2026-01-01", "=", "<<"),
        *("a: b", "a\nb: c", "- x", "# x", "'", '"', "{", "]", "*a", "&a b", "!!python/name:os.system", "| x", "> x"),
        *("{{ 7 * 7 }}", "{% raw %}", "%", "@", "`", "\t", "\x00", "\x85", "\u2028", "é", "\ud800", "a" * 5000),
        *(None, True, False, 0, -7, 10**30, 1.5, [], ["a", 1, None, ["b"]], {}, {"a": {"b: c": [1]}, "*": "\n- x"}),
    ],
)
def test_a_value_arrives_as_it_is_in_every_position(value: object) -> None:
    source = (
        "block: {{ X }}\n"
        "list:\n  - {{ X }}\n  -   {{ X }}  # comment {{ X }}\n"
        "flow: [{{ X }}, {inner: {{ X }}}, {{ X }}]\n"
        "after: end\n"
    )
    assert rendered(source, X=value) == {
        "block": value,
        "list": [value, value],
        "flow": [value, {"inner": value}, value],
        "after": "end",
    }


@pytest.mark.parametrize(
    "value", ["plain", "a: b\nc: d", "'", '"', "\\", "\\n", "# x", "  x  ", "}", 7, True, None, ["a"]]
)
def test_inside_a_text_it_is_text(value: object) -> None:
    source = (
        'double: "-{{ X }}-"\nsingle: \'-{{ X }}-\'\nplain: to {{ X }} or {{ X }}\nwhole: "{{ X }}"\n'
        "block: |\n  one\n  {{ X }}\n  -{{ X }}\nfolded: >-\n  a\n  {{ X }}\nafter: end\n"
    )
    text = str(value)
    assert rendered(source, X=value) == {
        "double": f"-{text}-",
        "single": f"-{text}-",
        "plain": f"to {text} or {text}",
        "whole": text,
        "block": f"one\n{text}\n-{text}\n",
        "folded": f"a {text}",
        "after": "end",
    }


def test_two_values_side_by_side_are_a_text() -> None:
    assert rendered("a: {{ X }}{{ Y }}", X=1, Y=2) == {"a": "12"}


HOSTILE = "x\n  evil: 1\n- y: [}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% macro m(v) %}a: {{ v }}\nb: t{{ v }}{% endmacro %}{{ m(X) }}", {"a": HOSTILE, "b": f"t{HOSTILE}"}),
        (
            "{% macro m() %}a:\n  {{ caller() }}{% endmacro %}{% call m() %}b: {{ X }}{% endcall %}",
            {"a": {"b": HOSTILE}},
        ),
        ("{% macro m() %}a: {{ caller(X) }}{% endmacro %}{% call(v) m() %}{{ v }}{% endcall %}", {"a": HOSTILE}),
        ("{% set s %}a: {{ X }}\n{% endset %}{{ s }}b: 1", {"a": HOSTILE, "b": 1}),
        ("{% set s %}{{ X }}{% endset %}a: {{ s }}", {"a": HOSTILE}),
        ("{% filter upper %}a: {{ X }}{% endfilter %}", f"A: {HOSTILE.upper()}"),
        ("a: {% filter upper %}{{ X }}{% endfilter %}", {"a": HOSTILE.upper()}),
        ("{% filter indent(2, true) %}b: {{ X }}\nc: 1{% endfilter %}", {"b": HOSTILE, "c": 1}),
        (
            "a:\n{% macro m() %}b: {{ X }}\nc:\n- {{ X }}\n{% endmacro %}{{ m()|indent(4, true) }}",
            {"a": {"b": HOSTILE, "c": [HOSTILE]}},
        ),
        ("{% macro m() %}\n\n  a: {{ X }}  \n{% endmacro %}{{ m()|trim }}", {"a": HOSTILE}),
        ("a: {{ 'x: ' ~ X ~ '\\n' }}", {"a": f"x: {HOSTILE}\n"}),
        ("a: {{ X + X }}", {"a": HOSTILE * 2}),
        ("a: {{ X|replace('x', 'k: v') }}", {"a": HOSTILE.replace("x", "k: v")}),
        ("a: {{ X|default('d') }}\nb: {{ Y|default('00:30:00') }}", {"a": HOSTILE, "b": "00:30:00"}),
        ("a: {{ [X, X]|join(': ') }}", {"a": f"{HOSTILE}: {HOSTILE}"}),
        ("a: {{ '%s: %s'|format(X, 1) }}", {"a": f"{HOSTILE}: 1"}),
        ("a: {{ X|tojson }}\nb: '{{ 7|tojson }}'", {"a": HOSTILE, "b": "7"}),
        ("a: {{ X|tojson|safe }}\nb: [{{ [X]|tojson }}]", {"a": HOSTILE, "b": [[HOSTILE]]}),
        ("a: {{ X|shell_escape }}", {"a": f"'{HOSTILE}'"}),
        ("a: {{ X|string }}\nb: {{ X|list|length }}", {"a": HOSTILE, "b": len(HOSTILE)}),
        ("a: {{ X.split() }}\nb: {{ X.splitlines()[0] }}", {"a": HOSTILE.split(), "b": "x"}),
        ("a: {{ 'yes' if X == 'g' else 'no' }}\nb: {% if X is string %}1{% else %}2{% endif %}", {"a": False, "b": 1}),
        ("a: [{% for v in [1, X, 3] %}{{ v }}{{ ', ' if not loop.last else '' }}{% endfor %}]", {"a": [1, HOSTILE, 3]}),
        ("a: {{ {'k': X}.items() }}\nb: {{ (X,)|map('upper') }}", {"a": [["k", HOSTILE]], "b": [HOSTILE.upper()]}),
        ("{% autoescape true %}a: {{ X }}{% endautoescape %}", {"a": HOSTILE}),
        ("{% with v = X %}a: {{ v }}{% endwith %}", {"a": HOSTILE}),
        ("{% set n = namespace(v=X) %}a: {{ n.v }}", {"a": HOSTILE}),
        ("{% macro m(n) %}{{ n }}{% if n %}{{ m(n - 1) }}{% endif %}{% endmacro %}a: {{ m(2) }}", {"a": "210"}),
        ("a: {% for v in [1, [2]] recursive %}{{ loop(v) if v is iterable else v }}{% endfor %}", {"a": "12"}),
        (
            "base: &b {x: {{ X }}}\nuse: *b\nmore: {<<: *b, y: 1}",
            {"base": {"x": HOSTILE}, "use": {"x": HOSTILE}, "more": {"x": HOSTILE, "y": 1}},
        ),
    ],
)  # fmt: skip
def test_the_ways_of_a_value_through_a_template(source: str, expected: object) -> None:
    assert rendered(source, X=HOSTILE) == expected


def test_extends_blocks_super_self_include_and_import() -> None:
    templates = {
        "main": "{% extends 'base' %}{% block one %}{{ super() }}b: {{ X }}\n{% endblock %}",
        "base": (
            "{% block one %}a: {{ X }}\n{% endblock %}{% include 'part' %}\n"
            "{% from 'lib' import line with context %}{{ line('e', X) }}\n"
            "{% import 'lib' as lib %}{{ lib.line('f', X) }}\n"
            "{% block two %}g: {{ X }}{% endblock %}\nh:\n  {{ self.two() }}\n"
        ),
        "part": "c: {{ X }}\nd: '{{ X }}'",
        "lib": "{% macro line(k, v) %}{% if k == 'e' %}e{% else %}f{% endif %}: {{ v }}{% endmacro %}",
    }
    document = rendered(templates, X=HOSTILE)
    assert document == {**dict.fromkeys("abcdefg", HOSTILE), "h": {"g": HOSTILE}}


def test_values_compare_plainly() -> None:
    source = "{% if P == 'gpu' and N > 3 and 'a' in L %}a: 1{% else %}b: 2{% endif %}"
    assert rendered(source, P="gpu", N=4, L=["a"]) == {"a": 1}
    assert rendered(source, P="gpu\n", N=4, L=["a"]) == {"b": 2}


def test_a_base_60_number_of_the_templates_own_is_its_text() -> None:
    assert rendered("a: 10:30:00\nb: 01:00:00\nc: 1:30\nd: 20:30.5\ne: 12\nf: 2026-01-01") == {
        "a": "10:30:00",
        "b": "01:00:00",
        "c": "1:30",
        "d": "20:30.5",
        "e": 12,
        "f": "2026-01-01",
    }


def test_yaml_scalars_of_the_templates_own() -> None:
    source = "a: ~\nb: yes\nc: 0x10\nd: 1.5\ne: !!str 12\nf:\ng: 'x'\nh: .inf"
    assert rendered(source) == {
        "a": None,
        "b": True,
        "c": 16,
        "d": 1.5,
        "e": "12",
        "f": None,
        "g": "x",
        "h": float("inf"),
    }
