"""Every template of etc/templates: a closed, documented schema, and no fault, warning or dead branch at check."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mep.config.template_bundle import read_schema
from mep_wire.bundle import UepBundle
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.render import render_settings
from user_endpoint.settings import GlobusComputeSettings
from user_endpoint.template_check import Trial, invented_identity, invented_start

TOP = Path(__file__).parents[2] / "etc/templates"
TEMPLATE = "user_config_template.yaml.j2"
NAMES = sorted(path.name for path in TOP.iterdir() if path.is_dir())
PROVIDERS = {
    "containers": "SlurmProvider", "gridengine": "GridEngineProvider", "htcondor": "CondorProvider",
    "kubernetes": "KubernetesProvider", "local": "LocalProvider", "lsf": "LSFProvider",
    "pbspro-polaris": "PBSProProvider", "slurm-cpu": "SlurmProvider", "slurm-gpu": "SlurmProvider",
    "slurm-mpi": "SlurmProvider",
}  # fmt: skip


def schema_of(name: str) -> dict[str, Any]:
    return dict(json.loads((TOP / name / "user_config_schema.json").read_text()))


def bundle(name: str) -> UepBundle:
    """Return a template with its schema, and with an interface that this host has in place of the site's."""
    text = re.sub(r"ifname: \w+", "ifname: lo", (TOP / name / TEMPLATE).read_text())
    return UepBundle(
        endpoint_id="e", endpoint_name="n", relay_link_address="", relay_link_key=b"", template_name=TEMPLATE,
        templates={TEMPLATE: text}, schema=schema_of(name), user_environment={}, parent_config={},
    )  # fmt: skip


def test_the_library_has_a_template_for_each_kind_of_site() -> None:
    assert sorted(PROVIDERS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_closed_and_documented(name: str) -> None:
    schema = read_schema(TOP / name / "user_config_schema.json", required=True, owner=(TOP / name).stat().st_uid)
    assert schema is not None
    assert schema["additionalProperties"] is False
    assert schema["title"]
    for key, one in schema["properties"].items():
        missing = {"title", "description", "type", "examples"} - one.keys()
        assert not missing, f"{key}: {missing}"
        assert key in schema["required"] or "default" in one or "Without it" in one["description"], key
        bound = {"integer": ("maximum", "enum"), "string": ("maxLength", "enum"), "array": ("maxItems",)}
        assert one["type"] == "boolean" or any(limit in one for limit in bound[one["type"]]), f"{key}: no bound"
        for value in [*one["examples"], *([one["default"]] if "default" in one else [])]:
            jsonschema.validate(value, one)


@pytest.mark.parametrize("name", NAMES)
def test_every_branch_renders_to_settings_that_a_start_accepts(name: str) -> None:
    verdict = Trial(bundle(name), seconds=100.0).run()
    assert verdict.problems == []
    assert verdict.notes == []


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_give_the_provider_that_the_name_says(name: str) -> None:
    schema = schema_of(name)
    config = {key: one["examples"][0] for key, one in schema["properties"].items()}
    engine = render_settings(bundle(name), invented_start(config), invented_identity()).engine
    assert isinstance(engine, GlobusComputeSettings)
    assert Plan(engine).name == PROVIDERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_of_schema_and_template_agree(name: str) -> None:
    schema = schema_of(name)
    least = {key: schema["properties"][key]["examples"][0] for key in schema["required"]}
    given = {key: one["default"] for key, one in schema["properties"].items() if "default" in one}
    starts = [invented_start(config) for config in (least, {**least, **given})]
    first, second = (render_settings(bundle(name), start, invented_identity()).engine for start in starts)
    assert first == second
