"""`quoting: json`: a template of Globus Compute means here what it meant there. The answers are those of its 4.19."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mep_wire.bundle import UepBundle
from user_endpoint.render import render_text
from user_endpoint.render.json_quoting import unquoted
from user_endpoint.render.sandbox import PieceEnvironment
from user_endpoint.render.yaml_document import YamlInvalid, document_from
from user_endpoint.template_check import Trial, invented_identity, invented_start

RUNTIME = {
    "globus_compute_sdk_version": "4.19.0",
    "python": {"version": "3.11.2", "version_tuple": [3, 11, 2]},
}


def bundle(template: str, quoting: str = "json", **more: Any) -> UepBundle:
    known: dict[str, Any] = {
        "endpoint_id": "e", "endpoint_name": "n", "relay_link_address": "", "relay_link_key": b"",
        "template_name": "t.j2", "templates": {"t.j2": template}, "schema": None, "user_environment": {},
        "parent_config": {"display_name": "Site"}, "quoting": quoting,
    }  # fmt: skip
    return UepBundle(**{**known, **more})


def document(template: str, config: dict[str, Any], **more: Any) -> Any:
    start = invented_start(config, None, RUNTIME)
    return document_from(render_text(bundle(template, **more), start, invented_identity(), PieceEnvironment)).data


@pytest.mark.parametrize(
    ("template", "value", "meant"),
    [
        ("{{ X }}", "phy", "phy"),
        ("{{ X }}", "12", "12"),
        ("{{ X }}", "true", "true"),
        ("{{ X }}", "a\nb \"q\" ü", "a\nb \"q\" ü"),
        ("{{ X }}", 4, 4),
        ("{{ X }}", 1.5, 1.5),
        ("{{ X }}", True, True),
        ("{{ X }}", None, None),
        ("{{ X }}", ["a", 1], ['"a"', 1]),
        ("{{ X[1:-1] }}", "phy", "phy"),
        ("{{ X[1:-1] }}", "12", 12),
        ("{{ X[1:-1] }}", "true", True),
        ("{{ X[1:-1] }}", "", None),
        ("module load {{ X[1:-1] }}", "python/3.11", "module load python/3.11"),
        ('"module load {{ X[1:-1] }}"', "a\nb", "module load a\nb"),
        ("|\n  +ProjectName = {{ X }}", "phy", '+ProjectName = "phy"'),
        ("|\n  echo {{ X }}", "a\nb", 'echo "a\\nb"'),
        ("{% if X == '\"gpu\"' %}yes{% else %}no{% endif %}", "gpu", True),
        ("{% if X in ['\"gpu\"', '\"big\"'] %}yes{% else %}no{% endif %}", "big", True),
        ("{{ X | shell_escape }}", "a b", "'a b'"),
        ("export A={{ X | shell_escape }}", "a b", "export A=\"'a b'\""),
        ("{{ X | shell_escape }}", 3, 3),
        ("{{ X | tojson }}", "phy", '"phy"'),
        ("{{ Y | default() }}", "", None),
    ],
)  # fmt: skip
def test_a_value_means_what_it_meant_there(template: str, value: Any, meant: Any) -> None:
    assert document(f"key: {template}", {"X": value}) == {"key": meant}


def test_the_endpoints_own_variables_have_no_quotes_but_the_runtime_has() -> None:
    template = (
        "who: {{ _GC.mapped_identity.local.uname }}\nsite: {{ _GC.parent_config.display_name }}\n"
        "sdk: '{{ _GC.user_runtime.globus_compute_sdk_version }}'\n"
        "python: {{ _GC.user_runtime.python.version_tuple | join('.') }}\n"
    )
    meant = {"who": "sample", "site": "Site", "sdk": '"4.19.0"', "python": "3.11.2"}
    assert document(template, {}) == meant


def test_environment_variables_are_those_of_the_start_and_of_user_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HOME", "/home/alice")
    template = "a: {{ _GC.env.HOME }}\nb: {{ _MEP.env.SCRATCH }}\nc: {{ _GC.env.GC_USER_PYTHON_VERSION }}\n"
    found = document(template, {}, user_environment={"SCRATCH": "${HOME}/s"})
    assert found == {"a": "/home/alice", "b": "/home/alice/s", "c": "3.11.2"}


@pytest.mark.parametrize("value", ['x"\nevil: 1', "x\n  evil: 1", "'", '"', "a: b", "[", "{", "*x", "!!python/none"])
@pytest.mark.parametrize(
    "template",
    [
        "key: {{ X }}\n",
        "key: {{ X[1:-1] }}\n",
        'key: "{{ X }}"\n',
        "key: '{{ X[1:-1] }}'\n",
        "key: |\n  {{ X[1:-1] }}\n",
        "key: a {{ X[1:-1] }} b\n",
    ],
)
def test_no_value_changes_the_keys_as_it_could_there(template: str, value: str) -> None:
    assert list(document(f"{template}other: 1\n", {"X": value})) == ["key", "other"]


def test_a_value_in_a_key_is_refused() -> None:
    with pytest.raises(YamlInvalid, match="may not stand in a key"):
        document("{{ X }}: 1\n", {"X": "a"})


@pytest.mark.parametrize("text", ["", '"', "a", '"a', '""a"', "12", '"\\x"'])
def test_what_is_no_json_text(text: str) -> None:
    assert unquoted(text) is None


def test_check_reaches_the_branches_of_such_a_template() -> None:
    template = "engine:\n  type: ProcessPoolEngine\n{% if P == '\"gpu\"' %}\n  max_wrkers: 1\n{% endif %}\n"
    schema = {"type": "object", "properties": {"P": {"type": "string"}}, "additionalProperties": False}
    problems = Trial(bundle(template, schema=schema)).run().problems
    assert [(line, name) for line, _, name in problems] == [(4, "t.j2")]
    assert "max_wrkers" in problems[0][1]
    assert '"P": "gpu"' in problems[0][1]
