"""Who made the mistake: the person's error names their variable; the administrator's error has the line."""

from __future__ import annotations

from typing import Any

import pytest

from mep_wire.bundle import UepBundle
from mep_wire.errors import EndpointMisconfigured, MepError, UserConfigInvalid, UserConfigReserved
from mep_wire.identity import IdentitySet
from mep_wire.limits import RESERVED_TEMPLATE_VARIABLES
from mep_wire.start_request import StartRequest
from user_endpoint.render import render_settings
from user_endpoint.render.sandbox import PieceEnvironment
from user_endpoint.settings import UepSettings

DRAFT_4 = "http://json-schema.org/draft-04/schema#"
ENGINE = "engine:\n  type: ThreadPoolEngine\n"


def settings(
    source: str | dict[str, str],
    config: dict[str, Any] | None = None,
    schema: dict[str, Any] | None = None,
    *,
    multi_user: bool = True,
    runtime: dict[str, Any] | None = None,
) -> UepSettings:
    bundle = UepBundle(
        endpoint_id="e",
        endpoint_name="n",
        relay_link_address="",
        relay_link_key=b"",
        template_name="t.j2",
        templates=source if isinstance(source, dict) else {"t.j2": source},
        schema=schema,
        user_environment={},
        parent_config={"display_name": "Site"},
        multi_user=multi_user,
    )
    start = StartRequest(
        endpoint_id="e",
        uep_id="u",
        identity_set=IdentitySet(account_id="a", identities=()),
        user_endpoint_config=config or {},
        user_runtime=runtime or {"python": "3.11"},
        issued_at=0,
        expires_at=0,
        nonce=b"",
        epoch=b"",
        sealed_join_token=b"",
        correlation_id="c",
    )
    return render_settings(bundle, start, {"local": {"uname": "alice"}, "globus": {}})


def refused(kind: type[MepError], source: str | dict[str, str], config: Any = None, schema: Any = None) -> MepError:
    with pytest.raises(kind) as caught:
        settings(source, config, schema)
    return caught.value


def test_what_the_endpoint_itself_gives_a_template() -> None:
    source = (
        ENGINE
        + "display_name: {{ parent_config.display_name }} {{ mapped_identity.local.uname }} {{ user_runtime.python }}"
    )
    assert settings(source).display_name == "Site alice 3.11"


@pytest.mark.parametrize("namespace", ["_GC", "_MEP"])
def test_the_same_variables_under_one_name(namespace: str) -> None:
    names = ("parent_config.display_name", "mapped_identity.local.uname", "user_runtime.python")
    text = " ".join(f"{{{{ {namespace}.{name} }}}}" for name in names)
    assert settings(f"{ENGINE}display_name: {text}").display_name == "Site alice 3.11"


# --- the person's side ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parent_config", "user_runtime", "mapped_identity", "range", "namespace"])
def test_reserved_names(name: str) -> None:
    error = refused(UserConfigReserved, ENGINE, {name: 1})
    assert name in error.text


@pytest.mark.parametrize("name", ["_GC", "_MEP", "mapped_identity"])
def test_nobody_takes_a_branch_that_the_template_keeps_for_one_account(name: str) -> None:
    """A template may trust these names, so a person who sends one is refused, whatever the schema allows."""
    source = ENGINE + "{% if " + name + " is defined %}display_name: privileged{% endif %}"
    mine = {"local": {"uname": "root"}}
    given = mine if name == "mapped_identity" else {"mapped_identity": mine}
    error = refused(UserConfigReserved, source, {name: given})
    assert name in error.text


def test_every_name_that_a_template_starts_with_is_reserved() -> None:
    given = set(PieceEnvironment({}).globals)
    assert given <= RESERVED_TEMPLATE_VARIABLES, "a person could hide a function that the template calls"


def test_a_variable_that_is_missing_is_named() -> None:
    error = refused(UserConfigInvalid, ENGINE + "display_name: {{ ACCOUNT }}")
    assert "ACCOUNT" in error.text
    assert error.detail == "t.j2: line 3"


def test_a_missing_part_of_what_the_person_gave() -> None:
    error = refused(UserConfigInvalid, ENGINE + "display_name: {{ CONF.inner.name }}", {"CONF": {"inner": {}}})
    assert "CONF" in error.text
    assert "name" in error.text


@pytest.mark.parametrize(
    "source", ["{{ [A] }}", "{{ A ~ 'x' }}", "{{ A|upper }}", "{{ A|shell_escape }}", "{% if A %}1{% endif %}"]
)
def test_undefined_however_it_is_used(source: str) -> None:
    assert "A" in refused(UserConfigInvalid, ENGINE + f"display_name: {source}").text


@pytest.mark.parametrize(
    ("schema", "config", "says"),
    [
        ({"properties": {"N": {"type": "integer"}}}, {"N": "2"}, "N: '2' is not of type 'integer'"),
        ({"properties": {"N": {"properties": {"a": {"enum": [1]}}}}}, {"N": {"a": 2}}, "N.a: 2 is not one of [1]"),
        ({"required": ["N"]}, {}, "N: 'N' is a required property"),
        ({"additionalProperties": False}, {"N": 1}, "N: Additional properties are not allowed"),
        ({"properties": {"N": {"pattern": "^[a-z]+$"}}}, {"N": "A"}, "N: 'A' does not match"),
        ({"$defs": {"n": {"maximum": 3}}, "properties": {"N": {"$ref": "#/$defs/n"}}}, {"N": 4}, "N: 4 is greater"),
        ({"$schema": DRAFT_4, "properties": {"N": {"type": "string"}}}, {"N": 1}, "N: 1"),
        ({"maxProperties": 1}, {"A": 1, "B": 1}, "user_endpoint_config: "),
    ],
)  # fmt: skip
def test_the_schema(schema: dict[str, Any], config: dict[str, Any], says: str) -> None:
    assert says in refused(UserConfigInvalid, ENGINE, config, schema).text


def test_a_value_of_the_wrong_type_names_the_persons_variable() -> None:
    error = refused(UserConfigInvalid, ENGINE + "  max_workers: {{ COUNT }}", {"COUNT": "many"})
    assert "COUNT: engine.max_workers: Expected `int | null`, got `str`" in error.text


def test_a_value_that_is_an_unknown_key_deep_inside_names_the_variable() -> None:
    source = "engine: {type: GlobusComputeEngine, job_status_kwargs: {{ J }}}"
    assert "J: engine.job_status_kwargs.max_idle" in refused(UserConfigInvalid, source, {"J": {"max_idle": 1}}).text


def test_a_walltime_that_is_a_number() -> None:
    source = "engine: {type: GlobusComputeEngine, provider: {type: SlurmProvider, walltime: {{ W }}}}"
    assert "W: engine.provider.walltime: is the number 37800" in refused(UserConfigInvalid, source, {"W": 37800}).text
    error = refused(EndpointMisconfigured, source.replace("{{ W }}", "37800"))
    assert "engine.provider.walltime" in error.detail


# --- the administrator's side -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{% if %}", "t.j2: line 1: "),
        (ENGINE + "{% endif %}", "t.j2: line 3: "),
        (ENGINE + "x: {{ X|nofilter }}", "t.j2: line 3: No filter named 'nofilter'"),
        (ENGINE + "x: {{ 1 + 'a' }}", "t.j2: line 3: TypeError"),
        (ENGINE + "x: {{ 1 / 0 }}", "t.j2: line 3: ZeroDivisionError"),
        (ENGINE + "{% include 'nowhere' %}", "t.j2: line 3: there is no template 'nowhere'"),
        (ENGINE + "x: {{ parent_config.nothing }}", "t.j2: line 3: 'dict object' has no attribute 'nothing'"),
        (ENGINE + "x: {{ range }}", "t.j2: line 3: UnusableValue"),
        (ENGINE + "x: {{ range(10 ** 9) }}", "OverflowError"),
        (ENGINE + "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        (ENGINE + "x: {{ ''.__class__ }}", "SecurityError"),
        (ENGINE + "x: {{ ''|attr('__class__') }}", "SecurityError"),
        (ENGINE + "x: {{ '{0.__class__}'.format('') }}", "SecurityError"),
        (ENGINE + "x: {{ [[]]|map(attribute='__class__')|list }}", "SecurityError"),
        (ENGINE + "x: {{ ''['__class__'] }}", "SecurityError"),
        (ENGINE + "{% set l = [] %}{{ l.append(1) }}", "SecurityError"),
        (ENGINE + "{% set s %}a{% endset %}x: {{ s._pieces }}", "SecurityError"),
        (ENGINE + "{% for i in range(9000) %}" + "x" * 200 + "{% endfor %}", "longer than"),
        (ENGINE + "x: [", "line 3 of the rendered text: while parsing a flow node: expected the node content"),
        (ENGINE + "x: @{{ 1 }}", "line 3 of the rendered text: while scanning for the next token: found character '@'"),
        (ENGINE + "{{ A }}: 1", "line 3 of the rendered text: a value may not stand in a key: ***: 1"),
        (ENGINE + "p{{ A }}: 1", "a value may not stand in a key"),
        (ENGINE + "? {{ A }}\n: 1", "a value may not stand in a key"),
        (ENGINE + "{'{{ A }}': 1}", "line 3"),
        (ENGINE + "x: {? [{{ A }}] : 1}", "a key must be a single word"),
        (ENGINE + "x: &{{ A }} 1", "a value may not stand in a YAML anchor"),
        (ENGINE + "x: *{{ A }}", "a value may not stand in a YAML anchor or alias"),
        (ENGINE + "x: !{{ A }} 1", "a value may not stand in a YAML tag"),
        (ENGINE + "x: !<{{ A }}> 1", "a value may not stand in a YAML tag"),
        (ENGINE + "x: !!{{ A }} 1", "a value may not stand in a YAML tag"),
        (f"%TAG !e! tag:{{{{ A }}}},1:\n---\n{ENGINE}x: !e!a 1", "a value may not stand in a YAML tag"),
        (ENGINE + "x: !!int {{ A }}", "a value may not carry a YAML tag"),
        (ENGINE + "x: !!str {{ A }}", "a value may not carry a YAML tag"),
        (ENGINE + "x: |{{ A }}\n  y", "line 3 of the rendered text: while scanning a block scalar: "),
        (ENGINE + "<<: {{ A }}", "only a mapping can be merged"),
        (ENGINE + "x: !!python/object:os.system 1", "tag:yaml.org,2002:python/object:os.system is not accepted"),
        (ENGINE + "x: !!set {a}", "is not accepted"),
        (ENGINE + "x: !!binary aGk=", "is not accepted"),
        (ENGINE + "x: &a [*a]", "an alias leads back to itself"),
        (ENGINE + "x: 1\nx: 2", "the key 'x' stands there twice"),
        (ENGINE + "x: !!int y", "'y' is no int"),
        (ENGINE + "---\na: 1", "expected a single document"),
        (ENGINE + "x: a\x07b", "special characters are not allowed"),
        (ENGINE + "x: *nothing", "found undefined alias"),
        ("- 1", "is not a mapping"),
        ("", "is not a mapping"),
        ("{{ A }}", "is not a mapping"),
        ("display_name: x", "engine: missing"),
        ("engine: {type: GlobusComputeEngin}", "engine.type: 'GlobusComputeEngin' is not one of"),
        (ENGINE + "  max_worker: 1", "engine.max_worker: unknown key; did you mean max_workers? Accepted: type, label"),
        (ENGINE + "idle_heartbeat_soft: 1", "idle_heartbeat_soft: unknown key; did you mean idle_heartbeats_soft?"),
        (ENGINE + "12: 1", "12: a key must be text"),
        ("engine: {type: GlobusComputeEngine, encrypted: false}", "engine.encrypted: must not be false"),
    ],
)  # fmt: skip
def test_what_only_the_administrator_can_put_right(source: str, says: str) -> None:
    error = refused(EndpointMisconfigured, source, {"A": "secret-value\nx: 1"})
    assert says in error.detail
    assert "secret-value" not in error.detail
    assert error.text == EndpointMisconfigured().text


def test_a_line_is_found_in_the_template_that_was_included() -> None:
    source = {"t.j2": ENGINE + "{% include 'part.j2' %}", "part.j2": "a: 1\nb: {{ 1 / 0 }}"}
    assert "part.j2: line 2: ZeroDivisionError" in refused(EndpointMisconfigured, source).detail


def test_a_variable_that_the_schema_does_not_let_a_person_give_is_the_administrators() -> None:
    schema = {"type": "object", "properties": {"ACCOUNT": {}}, "additionalProperties": False}
    assert "ACCOUNT" in refused(UserConfigInvalid, ENGINE + "display_name: {{ ACCOUNT }}", {}, schema).text
    assert "'ACOUNT' is undefined" in refused(EndpointMisconfigured, ENGINE + "x: {{ ACOUNT }}", {}, schema).detail


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objekt"}, "type: "),
        ({"properties": {"a": {"type": "objekt"}}}, "properties/a/type: "),
        ({"properties": {"a": {"$ref": "https://example.com/schema.json"}}}, "nothing outside of it is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "'/$defs/none' is not in the schema"),
    ],
)
def test_a_schema_that_is_none(schema: dict[str, Any], says: str) -> None:
    assert says in refused(EndpointMisconfigured, ENGINE, {"a": 1}, schema).detail


def test_unencrypted_is_a_single_user_endpoints_own_business() -> None:
    source = "engine: {type: GlobusComputeEngine, encrypted: false}"
    assert settings(source, multi_user=False).engine.encrypted is False  # type: ignore[union-attr]


@pytest.mark.parametrize("line", ["max_wrkers: {{ N }}", "max_wrkers: [{{ N }}]", "max_wrkers: {k: {{ N }} }"])
def test_a_misspelt_key_is_the_administrators_mistake_whatever_its_value(line: str) -> None:
    error = refused(EndpointMisconfigured, f"engine:\n  type: ProcessPoolEngine\n  {line}\n", {"N": 2})
    assert "unknown key" in error.detail


def test_a_misspelt_key_in_a_mapping_of_the_person_is_theirs() -> None:
    config = {"E": {"type": "ProcessPoolEngine", "max_wrkers": 2}}
    assert refused(UserConfigInvalid, "engine: {{ E }}\n", config).fields["key"] == "E"


@pytest.mark.parametrize(
    ("part", "line"),
    [("\nx: [\n", 2), ("display_name: a\n\ndisplay_nme: x\n", 3), ("{# a\n#}debug: {{ 'maybe' }}\n", 2)],
)
def test_a_start_names_file_and_line_of_a_mistake_in_an_included_file(part: str, line: int) -> None:
    source = {"t.j2": ENGINE + "{% if true %}{% include 'part.j2' %}{% endif %}\n", "part.j2": part}
    assert refused(EndpointMisconfigured, source).detail.endswith(f" (part.j2:{line})")
