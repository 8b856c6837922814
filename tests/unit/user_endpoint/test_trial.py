"""The trial rendering of `mep check`: its invented values, its findings, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mep_wire.bundle import UepBundle
from user_endpoint.template_check import TemplateVerdict, Trial, sample_of, samples

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
    jsonschema.validate(sample_of(schema), schema)


def test_a_schema_that_leads_back_to_itself_ends() -> None:
    loop: dict[str, Any] = {"anyOf": []}
    loop["anyOf"].append(loop)
    assert sample_of(loop) == "sample"


def test_no_schema_is_one_set_of_values() -> None:
    assert list(samples(None)) == [{}]


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
