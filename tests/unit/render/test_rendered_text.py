"""What `mep render` prints: YAML that is read back as the document of a start, with the line of each template."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from mep_wire.bundle import UepBundle
from user_endpoint.render_command import InputInvalid, Rendered, option_sets, render_one
from user_endpoint.template_check import invented_identity, invented_start

NAME = "user_config_template.yaml.j2"
ENGINE = "engine:\n  type: ProcessPoolEngine\n"


def shown(template: str, schema: dict[str, Any] | None = None, /, others: dict[str, str] | None = None,
          **options: Any) -> Rendered:  # fmt: skip
    bundle = UepBundle(
        endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name=NAME,
        templates={NAME: template, **(others or {})}, schema=schema, user_environment={}, parent_config={},
    )  # fmt: skip
    return render_one(bundle, invented_start(options), invented_identity())


def text(rendered: Rendered) -> str:
    return "".join(f"{line.text}\n" for line in rendered.lines)


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "",
        "12",
        "null",
        "a: b",
        "{x",
        "- y",
        "# c",
        "'q'",
        '"q"',
        "two\nlines",
        "a\u2028b",
        "\u0085",
        "*x",
        "&x",
        " space ",
        "@x",
        "caf\u00e9 \U0001f600",
        "\\n",
        3,
        -1,
        2.5,
        1e-5,
        1e30,
        True,
        None,
        [],
        ["a", 1, ["b: c"]],
        {"a": {"b": "c: d"}},
        {},
    ],
)
def test_a_value_is_read_back_as_it_is(value: Any) -> None:
    rendered = shown(ENGINE + "x: {{ v }}\n", v=value)
    assert yaml.safe_load(text(rendered))["x"] == value


@pytest.mark.parametrize("value", ["word", "a: b", 'q"q', "it's", "two\nlines", "# no comment", "a\u2028b", "\\"])
@pytest.mark.parametrize(
    "line",
    [
        "x: before {{ v }} after",
        "x: 'in {{ v }} quotes'",
        'x: "in {{ v }} quotes"',
        "x: [1, {{ v }}]",
        "x: {k: {{ v }} }",
        "x: |\n  one\n  export A={{ v }}\n  two",
        "x: >\n  one\n  {{ v }}\ny: 1",
        "# {{ v }}\nx: {{ v }}",
    ],
)
def test_a_value_in_a_longer_text_is_read_back(line: str, value: str) -> None:
    rendered = shown(ENGINE + line + "\n", v=value)
    expected = text_of_a_start(ENGINE + line + "\n", v=value)
    assert yaml.safe_load(text(rendered)) == expected


def text_of_a_start(template: str, **options: Any) -> Any:
    from user_endpoint.render.pieces import Fragment
    from user_endpoint.render.sandbox import PieceEnvironment
    from user_endpoint.render.yaml_document import document_from

    fragment = PieceEnvironment({NAME: template}).get_template(NAME).render(options)
    assert isinstance(fragment, Fragment)
    return document_from(fragment).data


def test_the_layout_and_the_comments_stay() -> None:
    rendered = shown("# ours\n" + ENGINE + "  max_workers: {{ n }}  # of them\n", n=3)
    assert text(rendered) == "# ours\n" + ENGINE + "  max_workers: 3  # of them\n"


def test_each_line_knows_its_template_and_line() -> None:
    template = (
        "{# a\ncomment #}{% if n > 1 -%}\nengine:\n  type: ProcessPoolEngine\n{% endif %}{% include 'more.j2' %}\n"
        "{% macro m(x) %}display_name: {{ x }}{% endmacro %}{{ m(n ~ '') }}\nidle_heartbeats_soft: {{ n }}\n"
    )
    rendered = shown(template, others={"more.j2": "\nidle_heartbeats_hard: 100\n"}, n=2)
    found = {line.text: line.origin for line in rendered.lines if line.text}
    assert found == {
        "engine:": (NAME, 3), "  type: ProcessPoolEngine": (NAME, 4), "idle_heartbeats_hard: 100": ("more.j2", 2),
        'display_name: "2"': (NAME, 6), "idle_heartbeats_soft: 2": (NAME, 7),
    }  # fmt: skip


def test_a_block_that_cannot_hold_a_value_keeps_the_lines_below_at_their_place() -> None:
    rendered = shown("x: |\n  a\n  {{ v }}\n" + ENGINE, v="1\n2")
    assert {line.text: line.origin for line in rendered.lines}["engine:"] == (NAME, 4)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENGINE + "{% if n %}\n max_workers: 2\n{% endif %}\n", f"{NAME}:4: "),
        (ENGINE + "  max_wrkers: 2\n", f"{NAME}:3: "),
        (ENGINE + "x: {{ 1 // 0 }}\n", f"{NAME}:3: ZeroDivisionError"),
        (ENGINE + "{% include 'no.j2' %}\n", f"{NAME}:3: there is no template"),
    ],
)
def test_a_mistake_of_the_template_has_its_line(template: str, said: str) -> None:
    [(whose, fault)] = shown(template, n=1).faults
    assert (whose, fault[: len(said)]) == ("template", said)


def test_every_key_that_the_schema_refuses_is_named() -> None:
    schema = {
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x"]}, "c": {"properties": {"d": {"type": "null"}}}},
        "required": ["z"],
    }
    faults = shown(ENGINE, schema, a="one", b="y", c={"d": 1}).faults
    assert {whose for whose, _ in faults} == {"options"}
    said = [fault for _, fault in faults]
    assert len(said) == 4
    assert all(any(f"{key}:" in one or f"{key} " in one for one in said) for key in ("a", "b", "c.d", "z"))


def test_a_value_that_the_options_lack_is_named() -> None:
    [(whose, fault)] = shown(ENGINE + "\nx: {{ WHO }}\n").faults
    assert whose == "options"
    assert "WHO" in fault
    assert f"{NAME}:4" in fault


def test_a_person_cannot_set_what_the_endpoint_sets() -> None:
    assert shown(ENGINE, _GC={"x": 1}).faults[0][0] == "options"


@pytest.mark.parametrize(
    ("sources", "sets"),
    [
        ([], [{}]),
        ([("", b"a=1"), ("", b"b=x=y"), ("", b"c=")], [{"a": 1, "b": "x=y", "c": ""}]),
        ([("f", b'{"a": 1}'), ("", b"a=2")], [{"a": 2}]),
        ([("f", b'[{"a": 1}, {"a": 2}]'), ("", b"b=true")], [{"a": 1, "b": True}, {"a": 2, "b": True}]),
        ([("f", b'{"a": 1}\n\n{"a": 2}\n')], [{"a": 1}, {"a": 2}]),
        ([("f", b"a: 1\nb: [x]\n")], [{"a": 1, "b": ["x"]}]),
    ],
)
def test_options_are_read(sources: list[tuple[str, bytes]], sets: list[dict[str, Any]]) -> None:
    assert option_sets(sources) == sets


@pytest.mark.parametrize("data", [b"[1]", b"text", b"\xff", b"a: [\n", b"[" * 100_000])
def test_what_are_no_options_is_refused_with_the_name_of_the_file(data: bytes) -> None:
    with pytest.raises(InputInvalid, match=r"recorded\.json"):
        option_sets([("recorded.json", data)])
