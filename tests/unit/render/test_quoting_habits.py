"""Templates that count on Globus Compute's quotes are refused, at check and at a start, with the change to make."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mep_wire.errors import EndpointMisconfigured
from user_endpoint.render import render_settings
from user_endpoint.render.quoting_habits import habits_of
from user_endpoint.template_check import Trial, invented_identity, invented_start

from .test_json_quoting import bundle

GOOD = "engine:\n  type: ProcessPoolEngine\n"
HABITS = [
    ("{% if P == '\"gpu\"' %}{% endif %}", 'write "gpu" in place of \'"gpu"\''),
    ('{% if P in [\'"gpu"\', "x"] %}{% endif %}', 'write "gpu" in place of \'"gpu"\''),
    ("# {{ 'a' if P != '\"a b\"' else 'b' }}", 'write "a b" in place'),
    ("# {{ P[1:-1] }}", "write P (of a list: (P | list)[1:-1])"),
    ("{% set p = P[ 1 : -1 ] %}# {{ p }}", "write P "),
    ("# {{ _GC.user_runtime.globus_compute_sdk_version[1:-1] }}", "write _GC.user_runtime.globus_compute_sdk_version"),
    ("x: |\n  +ProjectName = {{ P }}", "+ProjectName = {{ P | tojson }}"),
    ("x: \"+ProjectName = {{ P | default('a') }}\"", "+ProjectName = {{ (...) | tojson }}"),
]
HARMLESS = [
    "{% if P == 'gpu' %}{% endif %}",
    "{% if P == '\"' %}{% endif %}",
    "# {{ P[1:] }} {{ P[:-1] }} {{ P[1:-1:2] }} {{ (P | list)[1:-1] }}",
    "x: |\n  +ProjectName = {{ P | tojson }}",
    "x: |\n  export A={{ P }}\n  +Number = {{ N }}",
    "# {{ L[1:-1] }}",
    "x: |\n  echo '\"gpu\"' [1:-1]",
]
SCHEMA = {"type": "object", "properties": {"N": {"type": "integer"}, "L": {"type": "array"}, "P": {"type": "string"}}}


def start(template: str, **more: Any) -> Any:
    return render_settings(bundle(template, "typed", **more), invented_start({"P": "a"}), invented_identity())


@pytest.mark.parametrize(("template", "change"), HABITS)
def test_a_habit_is_refused_at_check_and_at_a_start(template: str, change: str) -> None:
    problem = Trial(bundle(GOOD + template, "typed")).run().problems[0]
    line = 3 + template[: re.search(r"'\"|\[ ?1|\{\{", template).start()].count("\n")  # type: ignore[union-attr]
    assert (problem[0], problem[2]) == (line, "t.j2")
    assert change in problem[1]
    assert "quoting: json" in problem[1]
    with pytest.raises(EndpointMisconfigured) as caught:
        start(GOOD + template)
    assert caught.value.detail == f"t.j2: line {line}: {problem[1]}"


@pytest.mark.parametrize("template", HARMLESS)
def test_what_only_looks_alike_is_no_habit(template: str) -> None:
    assert habits_of(bundle(GOOD + template, "typed", schema=SCHEMA)) == []


@pytest.mark.parametrize("template", [template for template, _ in HABITS])
def test_json_quoting_has_no_habits(template: str) -> None:
    assert habits_of(bundle(GOOD + template)) == []


def test_templates_that_are_not_used_are_left_alone() -> None:
    used = {"t.j2": GOOD + "{% include 'part.j2' %}", "part.j2": "# {{ P[1:-1] }}", "old.j2": "{{ P[1:-1] }}"}
    assert [(one.template, one.line) for one in habits_of(bundle("", "typed", templates=used))] == [("part.j2", 1)]


@pytest.mark.parametrize("name", ["mapped_identity", "user_runtime", "parent_config"])
def test_names_of_their_own_are_noted_as_deprecated(name: str) -> None:
    notes = Trial(bundle(f"{GOOD}# {{{{ {name} }}}}", "typed")).run().notes
    assert any(f"t.j2:3: {name} as a variable of its own is deprecated: write _GC.{name}" in note for note in notes)
    assert Trial(bundle(f"{GOOD}# {{{{ _GC.{name} }}}}", "typed")).run().notes == []
