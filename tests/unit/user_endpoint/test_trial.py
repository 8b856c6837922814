"""The trial rendering of `mep check`: its invented values, its findings, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mep_wire.bundle import UepBundle
from user_endpoint.render.sample_values import SampleValues
from user_endpoint.template_check import TemplateVerdict, Trial

NAME = "user_config_template.yaml.j2"
GOOD = "engine:\n  type: ProcessPoolEngine\n"


def tried(
    template: str, schema: dict[str, Any] | None = None, search_path: str = "", **templates: str
) -> TemplateVerdict:
    bundle = UepBundle(
        endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name=NAME,
        templates={NAME: template, **templates}, schema=schema, user_environment={}, parent_config={"debug": False},
    )  # fmt: skip
    return Trial(bundle, search_path).run()


def closed(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": required or [], "additionalProperties": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("template", "line", "said"),
    [
        ("engine:\n  type: ProcessPolEngine\n", 2, "ProcessPolEngine"),
        ("engine:\n  type: ProcessPoolEngine\n  max_wrkers: 2\n", 3, "max_wrkers"),
        ("{# long\ncomment #}\nengine:\n  type: ProcessPoolEngine\n  max_workers: two\n", 5, "max_workers"),
        ("engine:\n  type: ProcessPoolEngine\n max_workers: 2\n", 3, "max_workers"),
        ("engine: [\n", 0, ""),
        ("engine:\n  type: ProcessPoolEngine\nengine:\n  type: x\n", 0, "twice"),
        ("engine:\n  type: ThreadPoolEngine\nextra: {{ 1 // 0 }}\n", 3, "ZeroDivisionError"),
        ("engine:\n  type: GlobusComputeEngine\n  provider:\n    type: SlurmProvder\n", 0, "SlurmProvder"),
        ("engine:\n  type: ProcessPoolEngine\n{% include 'none.j2' %}\n", 3, "none.j2"),
        ("just text", 0, ""),
        ("", 0, ""),
    ],
)
def test_a_mistake_of_the_administrator_is_found_with_its_line(template: str, line: int, said: str) -> None:
    found = tried(template).problems
    assert found, "nothing was found"
    assert said in found[0][1]
    if line:
        assert found[0][0] == line, found


@pytest.mark.parametrize(
    ("template", "schema"),
    [
        (GOOD, None),
        (GOOD + "  max_workers: {{ n }}\n", None),
        ("engine:\n  type: {{ kind }}\n", closed(["kind"], kind={"enum": ["ThreadPoolEngine", "ProcessPoolEngine"]})),
        (GOOD + "  max_workers: {{ n | default(3) }}\n", closed(n={"type": "integer", "minimum": 2, "maximum": 4})),
        (GOOD + "display_name: {{ who.name }}\n", closed(["who"], who=closed(["name"], name={"type": "string"}))),
        (GOOD + "display_name: {{ mapped_identity.local.uname }} {{ user_runtime.python_version }}\n", None),
        (GOOD + "{% for x in names %}# {{ x }}\n{% endfor %}", closed(["names"], names={"type": "array"})),
        ("{% if gpu %}\n" + GOOD + "{% else %}\n" + GOOD + "{% endif %}\n", closed(["gpu"], gpu={"type": "boolean"})),
    ],
)
def test_a_good_template_has_no_problem(template: str, schema: dict[str, Any] | None) -> None:
    assert tried(template, schema).problems == []


def test_both_what_must_and_what_may_be_given_is_tried() -> None:
    template = GOOD + "{% if fast is defined %}\n  max_wrkers: 1\n{% endif %}\n"
    assert "max_wrkers" in tried(template, closed(fast={"type": "boolean"})).problems[0][1]
    template = GOOD + "{% if fast is not defined %}\n  max_wrkers: 1\n{% endif %}\n"
    assert "max_wrkers" in tried(template, closed(fast={"type": "boolean"})).problems[0][1]


def test_a_value_that_everybody_has_to_give_and_the_schema_does_not_require_is_noted() -> None:
    verdict = tried(GOOD + "display_name: {{ who }}\n", closed(who={"type": "string"}))
    assert verdict.problems == []
    assert "who has to be given" in verdict.notes[0]


def test_a_value_that_was_made_up_and_refused_is_no_problem() -> None:
    verdict = tried(GOOD + "  max_workers: {{ n }}\n", closed(["n"], n={"type": "string"}))
    assert verdict.problems == []
    assert 'n="sample"' in verdict.notes[0]


def test_a_key_that_means_nothing_here_is_noted_with_its_line() -> None:
    verdict = tried(GOOD + "heartbeat_threshold: 120\n")
    assert verdict.problems == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 5, "maximum": 9},
        {"type": "number", "exclusiveMinimum": 2},
        {"type": "string", "minLength": 12},
        {"type": "string", "maxLength": 3},
        {"type": "string", "pattern": "^x[0-9]$", "examples": ["x7"]},
        {"type": "boolean"},
        {"type": "null"},
        {"type": ["integer", "null"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 3},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        {"enum": ["b", "a"]},
        {"const": 7},
        {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        {"default": "d", "type": "string"},
        {},
        True,
    ],
)
def test_what_is_made_up_fits_its_schema(schema: Any) -> None:
    values = SampleValues({"properties": {"v": schema}}, {"v": [1, "x8", None, []]}).of("v")
    assert values
    for value in values:
        jsonschema.validate(value, schema)


def test_a_schema_that_leads_back_to_itself_ends() -> None:
    loop: dict[str, Any] = {"$ref": "#/properties/v"}
    assert SampleValues({"properties": {"v": loop}}, {}).of("v") == []
    tree = {"type": "object", "properties": {"child": {"$ref": "#/properties/v"}}}
    assert {} in SampleValues({"properties": {"v": tree}}, {}).of("v")


MISTAKE = "\n  max_wrkers: 1\n"
INTEGER = {"type": "integer", "minimum": 0, "maximum": 8}


@pytest.mark.parametrize(
    ("condition", "properties"),
    [
        ("GPUS > 0", {"GPUS": INTEGER}),
        ("GPUS == 8", {"GPUS": INTEGER}),
        ("GPUS | default(0) > 4", {"GPUS": INTEGER}),
        ("not 2 < GPUS", {"GPUS": INTEGER}),
        ('QUEUE == "long"', {"QUEUE": {"enum": ["short", "middle", "long"]}}),
        ('QUEUE == "other"', {"QUEUE": {"type": "string"}}),
        ('QUEUE in ["a", "b"]', {"QUEUE": {"type": "string", "pattern": "^[ab]$"}}),
        ("DEBUG", {"DEBUG": {"type": "boolean"}}),
        ("not DEBUG", {"DEBUG": {"type": "boolean", "default": True}}),
        ("DEBUG is not defined and GPUS is defined", {"DEBUG": {"type": "boolean"}, "GPUS": INTEGER}),
        ('QUEUE == "long" and GPUS == 3', {"QUEUE": {"enum": ["short", "long"]}, "GPUS": INTEGER}),
        ("N is none", {"N": {"type": ["integer", "null"]}}),
        ('WHO.kind == "guest"', {"WHO": closed(kind={"enum": ["staff", "guest"]})}),
        ("WHO.name is not defined", {"WHO": closed(name={"type": "string"})}),
        ("MODULES | length > 1", {"MODULES": {"type": "array", "items": {"enum": ["a", "b"]}}}),
        ("not MODULES", {"MODULES": {"type": "array", "items": {"type": "string"}}}),
        ("K == 5", {"K": {"$ref": "#/$defs/k"}}),
    ],
)
def test_a_mistake_in_a_branch_that_a_value_reaches_is_found(condition: str, properties: dict[str, Any]) -> None:
    schema = {**closed(**properties), "$defs": {"k": {"enum": [1, 5]}}}
    guard = " and ".join(f"{name} is defined" for name in properties if "default" not in condition)
    guard = "" if "is not defined" in condition or not guard else f"{guard} and "
    if "WHO" in condition:
        guard = "WHO is defined and "
    verdict = tried(f"{GOOD}{{% if {guard}({condition}) %}}{MISTAKE}{{% endif %}}", schema)
    assert [(line, "max_wrkers" in text) for line, text, _ in verdict.problems] == [(4, True)]
    assert any(name in verdict.problems[0][1] for name in properties)


@pytest.mark.parametrize(
    "inside",
    ["{% if A == 2 %}{% if B == 3 %}X{% endif %}{% endif %}", "{% if A == 1 %}{% elif B == 3 %}X{% endif %}",
     "{% if A != 1 %}{% else %}X{% endif %}", "{% for x in L %}{% if x == 'b' %}X{% endif %}{% endfor %}",
     "{% for x in L %}{% else %}X{% endfor %}", "{% macro m(y) %}{% if y == 3 %}X{% endif %}{% endmacro %}{{ m(A) }}"],
)  # fmt: skip
def test_branches_inside_of_others_are_reached(inside: str) -> None:
    integer = {"type": "integer", "minimum": 1, "maximum": 9}
    schema = closed(["A", "B", "L"], A=integer, B=integer, L={"type": "array", "items": {"enum": ["a", "b"]}})
    verdict = tried(GOOD + inside.replace("X", MISTAKE), schema)
    assert "max_wrkers" in verdict.problems[0][1]


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("{% if GPUS > 8 %}\n{% endif %}", "makes this condition true"),
        ("{% if GPUS >= 0 %}\n{% endif %}", "makes this condition false"),
        ("{% for x in [] %}{% endfor %}", "runs the body of this loop"),
        ("# {{ 'a' if GPUS < 0 else 'b' }}", "makes this condition true"),
        (
            "{% if 'gpu' in mapped_identity.local.group_names %}{% endif %}",
            "it reads mapped_identity: try `mep render`",
        ),
    ],
)
def test_what_no_value_reaches_is_named_with_its_line(inside: str, said: str) -> None:
    verdict = tried(f"{GOOD}# {{{{ GPUS }}}}\n{inside}\n", closed(["GPUS"], GPUS=INTEGER))
    (note,) = [one for one in verdict.notes if "deprecated" not in one]
    assert note.startswith(f"{NAME}:4: no value that was tried {said}") or note.endswith("--runtime")
    assert said in note


@pytest.mark.parametrize(
    ("template", "schema", "said"),
    [
        ("# {{ NODS | default(1) }}\n", closed(NODES=INTEGER), f"{NAME}:3: NODS: the schema has no such property, and"),
        ("# {{ NODS | default(1) }}\n", {"properties": {"NODES": INTEGER}}, f"{NAME}:3: NODS: the schema has no such"),
        ("# {{ NODS | default(1) }}\n", closed(NODES=INTEGER), "properties/NODES: no template uses this variable"),
        ("# {{ X | default(1) }}\n", closed(X={"type": "string", "pattern": "^(?!q)q+$"}), "the pattern ^(?!q)q+$"),
        (
            "# {{ X | default(1) }}\n",
            closed(X=closed(inner={"type": "array", "items": {"type": "string", "pattern": "^(?!q)q+$"}})),
            "properties/inner[]: no value could be made for the pattern ^(?!q)q+$",
        ),
    ],
)
def test_names_and_patterns_that_do_not_fit_are_noted(template: str, schema: dict[str, Any], said: str) -> None:
    assert any(said in note for note in tried(GOOD + template, schema).notes)


def test_names_that_fit_are_not_noted() -> None:
    template = (
        "{% set n = NODES %}# {{ n }} {{ _MEP.user_runtime.python_version }} {{ _GC.user_runtime.python_version }}\n"
    )
    assert tried(f"{GOOD}{template}", closed(["NODES"], NODES=INTEGER)).notes == []


def test_the_number_of_renderings_is_bounded() -> None:
    names = [f"N{number}" for number in range(12)]
    tests = "".join(f"{{% if {name} == 3 %}}{{% endif %}}" for name in names)
    schema = closed(names, **{name: {"enum": [*range(40)]} for name in names})
    trial = Trial(
        UepBundle(
            endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name=NAME,
            templates={NAME: f"{GOOD}{tests}"}, schema=schema,
            user_environment={}, parent_config={},
        )
    )  # fmt: skip
    assert any("not every combination was tried" in note for note in trial.run().notes)


@pytest.mark.parametrize(
    ("part", "line", "said"),
    [
        ("{# x #}\nx: {{ 1 // 0 }}\n", 2, "ZeroDivisionError"),
        ("a: 1\n{% if %}\n", 2, ""),
        ("# x\ndisplay_nme: x\n", 2, "display_nme"),
        ("# x\n#\nx: [\n", 0, "while parsing"),
        ("debug: {{ n + 'x' }}\n", 1, "TypeError"),
    ],
)
def test_a_mistake_in_an_included_file_has_its_file_and_line(part: str, line: int, said: str) -> None:
    template = GOOD + "{% set n = 1 %}\n{% include 'part.j2' %}\n"
    found = tried(template, **{"part.j2": part}).problems[0]
    assert said in found[1]
    if line:
        assert (found[2], found[0]) == ("part.j2", line)


SLURM = "engine:\n  type: GlobusComputeEngine\n  provider:\n    type: SlurmProvider\n    partition: p\n"


@pytest.mark.parametrize(
    ("provider", "commands", "found"),
    [
        ("SlurmProvider", "", "SlurmProvider needs sbatch, squeue, scancel, found in no directory of "),
        ("SlurmProvider", "sbatch squeue", "SlurmProvider needs scancel, found in no directory of "),
        ("SlurmProvider", "sbatch squeue scancel", ""),
        ("PBSProProvider", "qsub", "PBSProProvider needs qstat, qdel, found in no directory of "),
    ],
)
def test_commands_that_a_user_endpoint_would_not_find(tmp_path: Path, provider: str, commands: str, found: str) -> None:
    for name in commands.split():
        (tmp_path / name).touch(mode=0o755)
    template = f"engine:\n  type: GlobusComputeEngine\n  provider:\n    type: {provider}\n"
    notes = tried(template, search_path=str(tmp_path)).notes
    assert [note for note in notes if "needs" in note] == (
        [f"{NAME}:3: {found}{tmp_path}: install the scheduler's commands, or set user_search_path in config.yaml"]
        if found
        else []
    )


def test_more_nodes_than_descriptors() -> None:
    (note,) = tried(f"{SLURM}    max_blocks: 1000000\n    nodes_per_block: 64\n").notes
    assert note.startswith(f"{NAME}:3: max_blocks 1000000 with 64 nodes each need about 192000100 descriptors")
    assert not tried(f"{SLURM}    max_blocks: 2\n").notes


def test_a_thorough_trial_finds_what_the_usual_one_has_no_time_for() -> None:
    values = {"enum": list(range(12))}
    template = f"{GOOD}{{% if A == 11 and B == 11 and C == 11 %}}\n  max_wrkers: 1\n{{% endif %}}\n"
    bundle = UepBundle(
        endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name=NAME,
        templates={NAME: template}, schema=closed(["A", "B", "C"], A=values, B=values, C=values),
        user_environment={}, parent_config={},
    )  # fmt: skip
    usual = Trial(bundle).run()
    assert usual.problems == []
    assert any("makes this condition true" in note for note in usual.notes)
    (problem,) = Trial(bundle, seconds=100.0, renderings=10_000, combined=10_000).run().problems
    assert problem[0] == 4


def test_texts_are_made_for_a_pattern_and_reach_the_branch_that_reads_them() -> None:
    template = GOOD + '{% if ACCOUNT.endswith("-gpu") %}\n  max_wrkers: 1\n{% endif %}\n'
    schema = closed(["ACCOUNT"], ACCOUNT={"type": "string", "pattern": "^[a-z]{3}-(cpu|gpu)$"})
    assert "max_wrkers" in tried(template, schema).problems[0][1]


def test_the_pattern_of_an_item_in_a_list_is_made_up_too() -> None:
    template = GOOD + "{% for node in NODES %}\n  max_wrkers: 1\n{% endfor %}\n"
    schema = closed(["NODES"], NODES={"type": "array", "items": {"type": "string", "pattern": "^node[0-9]{4}$"}})
    assert "max_wrkers" in tried(template, schema).problems[0][1]


RESTRICTED = """
allowed_functions: ["sha256:{digest}"]
engine:
  type: GlobusComputeEngine
  container_type: docker
  container_uri: {{{{ image | default("science") }}}}
  provider:
    type: LocalProvider
    worker_init: {{{{ commands | default("true") }}}}
""".format(digest="0" * 64)


@pytest.mark.parametrize(
    ("image", "commands", "named"),
    [
        ({"type": "string"}, {"enum": ["module load a", "module load b"]}, "image"),
        ({"const": "science"}, {"type": "string"}, "commands"),
        (
            {"enum": ["science"]},
            {"type": "string", "pattern": "^module load [a-z]+$", "examples": ["module load a"]},
            "",
        ),
    ],
)
def test_with_a_list_of_functions_a_text_that_is_run_besides_them_is_noted(
    image: dict[str, Any], commands: dict[str, Any], named: str
) -> None:
    found = tried(RESTRICTED, closed(image=image, commands=commands))
    assert not found.problems
    notes = [note for note in found.notes if "besides the listed functions" in note]
    assert len(notes) == bool(named)
    assert all(f"the person's {named} is run" in note for note in notes)
    without = tried(RESTRICTED.replace("allowed_functions", "# "), closed(image=image, commands=commands))
    assert not [note for note in without.notes if "besides the listed functions" in note]


def test_a_text_that_stands_there_anyway_is_not_taken_for_a_persons() -> None:
    """Texts that are tried, such as 1 and the default, also stand in images and commands of the site's own."""
    template = RESTRICTED.replace('default("science")', 'default("python:3.11")').replace("true", "module load cpu")
    template = template.replace("LocalProvider", "SlurmProvider") + "    partition: {{ partition }}\n"
    text = {"type": "string"}
    schema = closed(["partition"], partition={**text, "default": "cpu"}, commands=text)
    notes = [note for note in tried(template, schema).notes if "besides the listed functions" in note]
    assert [note.partition("the person's ")[2].split()[0] for note in notes] == ["commands"]
