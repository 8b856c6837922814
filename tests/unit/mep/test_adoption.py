"""`mep adopt`: what becomes of each key and each file of a directory of Globus Compute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mep.boundary.errors import ConfigRefused
from mep.cli.adoption import Adopted, adopted
from mep.cli.exit_codes import CliFailed
from mep.config.parser import read_document
from tests.support.globus_directory import ENDPOINT_ID, MAPPING, TEMPLATE, globus_directory

MULTI_USER = "multi_user"


def made(directory: Path, *, privileged: bool = True) -> Adopted:
    return adopted(directory, privileged=privileged, relay_url="https://relay.example.org")


def fates(result: Adopted) -> dict[str, str]:
    return {one.name: one.fate for one in result.fates}


def test_a_directory_as_configure_leaves_it(tmp_path: Path) -> None:
    result = made(globus_directory(tmp_path / "site"))
    options = read_document(result.config, "config.yaml").options
    assert (options.multi_user, options.public, options.quoting) == (True, True, "json")
    assert (options.display_name, options.email) == ("The cluster", "help@example.edu")
    assert options.identity_mapping_config_path is None
    assert result.endpoint_id == ENDPOINT_ID
    assert result.files["user_config_template.yaml.j2"] == TEMPLATE
    assert json.loads(result.files["identity_mapping.json"]) == MAPPING
    assert fates(result) == {
        "display_name": "kept", "email": "kept", "public": "kept", "endpoint.json": "kept",
        "identity_mapping_config_path": "changed", "multi_user": "added", "relay_url": "added", "quoting": "added",
    }  # fmt: skip


KEYS: list[tuple[str, Any, str, str, Any]] = [
    ("amqp_port", 443, "ignored", "", None),
    ("heartbeat_period", 30, "ignored", "", None),
    ("mu_child_ep_grace_period_s", 30, "ignored", "", None),
    ("subscription_id", "6d0ba55f-de15-4af2-827d-05c50c338aa7", "ignored", "", None),
    ("high_assurance", True, "kept", "high_assurance", True),
    ("authentication_policy", None, "", "", None),
    ("authentication_policy", "6d0ba55f-de15-4af2-827d-05c50c338aa7", "kept", "authentication_policy",
     "6d0ba55f-de15-4af2-827d-05c50c338aa7"),
    ("display_name", "None", "ignored", "display_name", None),
    ("debug", True, "kept", "debug", True),
    ("admins", ["6d0ba55f-de15-4af2-827d-05c50c338aa7"], "kept", "admins", ["6d0ba55f-de15-4af2-827d-05c50c338aa7"]),
    ("allowed_functions", ["6d0ba55f-de15-4af2-827d-05c50c338aa7"], "kept", "allowed_functions",
     ["6d0ba55f-de15-4af2-827d-05c50c338aa7"]),
    ("audit_log_path", "/var/log/audit.txt", "kept", "audit_log_path", "/var/log/audit.txt"),
    ("audit_log_path", "/nosuch/audit.txt", "changed", "audit_log_path", None),
    ("something_new", 1, "ignored", "", None),
    ("multi_user", True, "kept", "multi_user", True),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "fate", "option", "kept"), KEYS)
def test_each_key_has_a_fate(tmp_path: Path, key: str, value: Any, fate: str, option: str, kept: Any) -> None:
    result = made(globus_directory(tmp_path / "site", {key: value}))
    assert fates(result).get(key, "") == fate
    if option:
        assert getattr(read_document(result.config, "").options, option) == kept


@pytest.mark.parametrize(
    ("given", "enable", "service"),
    [({}, True, "globus-compute-endpoint"), ({"service_name": "gce"}, True, "gce"), ({"enable": False}, False, "mep")],
)
def test_pam_keeps_globus_computes_defaults(tmp_path: Path, given: Any, enable: bool, service: str) -> None:
    options = read_document(made(globus_directory(tmp_path / "site", {"pam": given})).config, "").options
    assert (options.pam.enable, options.pam.service_name) == (enable, service)


def test_paths_outside_of_the_directory_are_copied(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/map.json").write_text(json.dumps(MAPPING))
    (tmp_path / "shared/schema.json").write_text('{"type": "object"}')
    (tmp_path / "shared/t.j2").write_text("{% include 'parts/engine.yaml' %}{% include 'none.j2' ignore missing %}")
    (tmp_path / "shared/parts").mkdir()
    (tmp_path / "shared/parts/engine.yaml").write_text("engine: {type: ThreadPoolEngine}\n")
    (tmp_path / "shared/unrelated.txt").write_text("secret")
    given = {
        "identity_mapping_config_path": "../shared/map.json", "user_config_schema_path": "../shared/schema.json",
        "user_config_template_path": str(tmp_path / "shared/t.j2"),
    }  # fmt: skip
    result = made(globus_directory(tmp_path / "site", given))
    options = read_document(result.config, "").options
    assert options.user_config_template_path == "templates/t.j2"
    assert set(result.files) == {
        "identity_mapping.json", "user_config_schema.json", "user_environment.yaml", "templates/t.j2",
        "templates/parts/engine.yaml",
    }  # fmt: skip
    assert {name for name, fate in fates(result).items() if fate == "changed"} == set(given)


def test_templates_beside_are_copied_if_they_are_used(tmp_path: Path) -> None:
    directory = globus_directory(
        tmp_path / "site", user_config_template__yaml__j2="{% extends 'base.j2' %}", base__j2="{% include X %}",
        other__j2="a: 1\n",
    )  # fmt: skip
    result = made(directory)
    assert {"base.j2", "other.j2", "user_config_template.yaml.j2"} <= set(result.files)


def test_the_old_name_of_the_template_is_taken(tmp_path: Path) -> None:
    directory = globus_directory(tmp_path / "site")
    (directory / "user_config_template.yaml.j2").rename(directory / "user_config_template.yaml")
    assert made(directory).files["user_config_template.yaml.j2"] == TEMPLATE


def test_an_engine_in_config_yaml_becomes_the_template(tmp_path: Path) -> None:
    engine = {"type": "ProcessPoolEngine", "max_workers": 2, "worker_init": "echo {{ x }}"}
    directory = globus_directory(
        tmp_path / "site", {"engine": engine, "idle_heartbeats_soft": 3, "identity_mapping_config_path": None}
    )
    for name in ("user_config_template.yaml.j2", "user_config_schema.json"):
        (directory / name).unlink()
    result = made(directory, privileged=False)
    assert read_document(result.config, "").options.multi_user is False
    text = result.files["user_config_template.yaml.j2"]
    inner = text.removeprefix("{% raw %}").removesuffix("{% endraw %}\n")
    assert yaml.safe_load(inner) == {"engine": engine, "idle_heartbeats_soft": 3}
    assert fates(result)["engine"] == "changed"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("config.py", "config = 1\n", "is a program"),
        ("config.yaml", "a: [\n", "not valid YAML"),
        ("config.yaml", "- a\n", "must be a mapping"),
        ("config.yaml", "display_name: 3\n", "display_name"),
        ("user_config_template.yaml.j2", "{% include '../../etc/passwd' %}", "outside of its directory"),
        ("user_config_template.yaml.j2", "{% include '/etc/passwd' %}", "outside of its directory"),
        ("user_config_schema.json", "\udcff", "not UTF-8"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_file(tmp_path: Path, file: str, text: str, said: str) -> None:
    directory = globus_directory(tmp_path / "site")
    (directory / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigRefused, match=said):
        made(directory)


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("engine: 1\n")
    directory = globus_directory(tmp_path / "site")
    (directory / "user_config_template.yaml.j2").unlink()
    (directory / "user_config_template.yaml.j2").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigRefused, match="copy the file itself"):
        made(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="another owner needs root")
@pytest.mark.parametrize(
    "key", ["user_config_template_path", "user_config_schema_path", "identity_mapping_config_path"]
)
def test_root_publishes_no_file_for_another_account(tmp_path: Path, key: str) -> None:
    (tmp_path / "secret").write_text("root's own\n")
    (tmp_path / "secret").chmod(0o600)
    directory = globus_directory(tmp_path / "site", {key: str(tmp_path / "secret")})
    for path in (directory, *directory.iterdir()):
        os.chown(path, 12345, 12345)
    with pytest.raises(ConfigRefused, match="belongs to uid 0"):
        made(directory)


def test_other_files_are_named_and_left(tmp_path: Path) -> None:
    result = made(globus_directory(tmp_path / "site", storage__db="x", daemon__pid="1"))
    assert {"storage.db": "ignored", "daemon.pid": "ignored"}.items() <= fates(result).items()
    assert "storage.db" not in result.files


def test_a_directory_that_is_no_endpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match="no directory of an endpoint"):
        made(tmp_path)
    with pytest.raises(CliFailed, match="no directory"):
        made(tmp_path / "none")


BOMB = "a0: &a0 [" + "x," * 9 + "]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]\n" for n in range(1, 6))


@pytest.mark.parametrize(
    "text",
    [
        BOMB + "allowed_functions: [*a5]\n", "allowed_functions: &a [*a]\n", "display_name: 2026-99-99\n",
        "user_config_template_path: ~no-such-account-here/x.j2\n",
    ],
)  # fmt: skip
def test_a_hostile_directory_is_refused(tmp_path: Path, text: str) -> None:
    """Root may adopt a person's directory: a few lines must not use up the memory, or end in a traceback."""
    directory = globus_directory(tmp_path / "site")
    (directory / "config.yaml").write_text(text)
    with pytest.raises(ConfigRefused):
        made(directory)


def test_a_bomb_in_the_id_is_no_id(tmp_path: Path) -> None:
    directory = globus_directory(tmp_path / "site")
    (directory / "endpoint.json").write_text(BOMB + "endpoint_id: [*a5]\n")
    assert not made(directory).endpoint_id


def test_a_template_nested_too_deeply_is_left_to_check(tmp_path: Path) -> None:
    directory = globus_directory(tmp_path / "site")
    (directory / "user_config_template.yaml.j2").write_text("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
    assert "user_config_template.yaml.j2" in made(directory).files
