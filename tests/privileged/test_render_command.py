"""`mep render` as root: the template is rendered as a real account, and never as root."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from tests.support.accounts import LocalAccount
from tests.support.cli import Cli
from tests.support.registrar import Registrar, configure

TEMPLATE = """engine:
  type: ProcessPoolEngine
{% if GPUS | default(0) > 1 %}
  max_workers: {{ GPUS }}
{% endif %}
display_name: {{ mapped_identity.local.uname }} {{ mapped_identity.local.uid }} {{ mapped_identity.globus.username }}
"""
SCHEMA = {"type": "object", "properties": {"GPUS": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def site(mep: Cli, registrar: Registrar) -> Cli:
    configure(mep, registrar, "--domain", "example.org")
    mep.path("etc", "site", "user_config_template.yaml.j2").write_text(TEMPLATE)
    mep.path("etc", "site", "user_config_schema.json").write_text(json.dumps(SCHEMA))
    return mep


def test_as_an_account(site: Cli, alice: LocalAccount) -> None:
    done = site("render", "site", "--as", alice.name, "--options", "GPUS=3")
    value = yaml.safe_load(done.stdout)
    assert value["engine"] == {"type": "ProcessPoolEngine", "max_workers": 3}
    assert value["display_name"].startswith(f"{alice.name} {alice.uid} ")


def test_for_an_identity_that_is_mapped(site: Cli, alice: LocalAccount) -> None:
    identity = f"{alice.name}@example.org"
    done = site("render", "site", "--identity", identity)
    assert yaml.safe_load(done.stdout)["display_name"] == f"{alice.name} {alice.uid} {identity}"
    assert "LOOKUP_USER" in site("map", "site", "--identity", "meptest-none@example.org", expect=1).stdout
    assert "meptest-none" in site("render", "site", "--identity", "meptest-none@example.org", expect=1).stderr


@pytest.mark.parametrize("name", ["root", "meptest-nobody-has-this"])
def test_root_and_accounts_that_are_not_there_are_refused(site: Cli, name: str) -> None:
    done = site("render", "site", "--as", name, expect=2 if name == "root" else 1)
    assert name in done.stderr
    assert done.stdout == ""


def test_the_renderer_itself_refuses_root() -> None:
    argv = [sys.executable, "-I", "-m", "user_endpoint.render_command", "0"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "refuses to run as root" in done.stderr


def test_lines_have_their_origin(site: Cli) -> None:
    lines = site("render", "site", "--options", "GPUS=3", "--lines").stdout.splitlines()
    [worker] = [line for line in lines if "max_workers" in line]
    assert worker.split() == ["4", "user_config_template.yaml.j2:4", "max_workers:", "3"]


def test_mistakes_go_to_standard_error_with_an_exit_code(site: Cli) -> None:
    done = site("render", "site", "--options", "GPUS=many", "--options", "QUEUE=x", expect=1)
    assert done.stdout == ""
    assert "GPUS" in done.stderr
    assert "QUEUE" in done.stderr
    template = site.path("etc", "site", "user_config_template.yaml.j2")
    template.write_text(TEMPLATE.replace("max_workers", "max_wrkers"))
    site("render", "site")
    done = site("render", "site", "--options", "GPUS=2", expect=4)
    assert "user_config_template.yaml.j2:4: engine.max_wrkers" in done.stderr


def test_a_difference_for_recorded_options(site: Cli) -> None:
    other = site.directory / "new"
    other.mkdir()
    (other / "user_config_template.yaml.j2").write_text(TEMPLATE.replace("max_workers", "max_workers_per_node"))
    recorded = site.directory / "recorded.json"
    recorded.write_text('{"GPUS": 1}\n{"GPUS": 4}\n')
    done = site("render", "site", "--diff", str(other), "--options", str(recorded), expect=4)
    assert "options 1" not in done.stdout
    assert "-  max_workers: 4\n+  max_workers_per_node: 4\n" in done.stdout
    assert "then: options 2: user_config_template.yaml.j2:4" in done.stderr


def test_the_command_of_globus_compute(site: Cli) -> None:
    options = site.directory / "options.json"
    options.write_text('{"GPUS": 2}')
    done = site("render-user-config", "-e", "site", "-o", str(options))
    assert yaml.safe_load(done.stdout)["engine"]["max_workers"] == 2
    template = site.directory / "own.j2"
    template.write_text("engine: {type: ThreadPoolEngine}\ndisplay_name: {{ user_runtime.python_version }}\n")
    runtime = site.directory / "runtime.json"
    runtime.write_text('{"python_version": "3.77"}')
    done = site("render-user-config", "-t", str(template), "--user-runtime", str(runtime))
    assert yaml.safe_load(done.stdout)["display_name"] == "3.77"
    assert "-e NAME" in site("render-user-config", expect=2).stderr
    template.write_text(
        "engine: {type: ThreadPoolEngine}\n"
        "display_name: {{ _GC.parent_config.display_name }} of {{ _GC.mapped_identity.local.uname }}\n"
    )
    parent, identity = site.directory / "parent.yaml", site.directory / "identity.json"
    parent.write_text("display_name: A site\n")
    identity.write_text('{"local": {"uname": "carol"}}')
    words = ["--parent-config", str(parent), "--mapped-identity", str(identity)]
    done = site("render-user-config", "-t", str(template), *words)
    assert yaml.safe_load(done.stdout)["display_name"] == "A site of carol"
    identity.write_text("- 1\n")
    assert f"{identity}: must be a mapping" in site("render-user-config", "-t", str(template), *words, expect=2).stderr


def test_check_finds_a_mistake_that_only_some_options_reach(site: Cli) -> None:
    template = site.path("etc", "site", "user_config_template.yaml.j2")
    template.write_text(TEMPLATE.replace("max_workers", "max_wrkers"))
    said = site("check", "site", expect=4).stderr
    assert f"{template}:4: the template's output is refused: engine.max_wrkers: unknown key" in said
    assert "with the options" in said
    template.write_text(TEMPLATE.replace("GPUS |", "GPU |"))
    assert "GPU: the schema has no such property" in site("check", "site").stderr
