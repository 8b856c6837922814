"""Adopting a directory of Globus Compute, with a real relay; and the options that its command line has."""

from __future__ import annotations

import gzip
import json
import os
import pwd
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.cli import Cli, open_directory
from tests.support.globus_directory import MAPPING, globus_directory
from tests.support.relay import RelayProcess

BIN = Path(sys.prefix, "bin")
ROOT = os.geteuid() == 0
OTHER_ID = "6d0ba55f-de15-4af2-827d-05c50c338aa7"
KIND = ["--multi-user", "true"] if ROOT else ["--multi-user", "false"]


@pytest.fixture(scope="module")
def token(relay: RelayProcess) -> str:
    return relay.add_user("admin@example.edu")


@pytest.fixture
def mep(relay: RelayProcess, token: str) -> Iterator[Cli]:
    with open_directory() as directory:
        cli = Cli(directory, variables={"MEP_TOKEN": token, "MEP_RELAY_URL": relay.url})
        yield cli
        for name in ("site", "second", "other"):
            if cli.path("etc", name).exists():
                cli("delete", name, "--yes", "--force")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with an id of its own: a relay gives no id twice, not even a deleted one."""
    return globus_directory(tmp_path / "site", endpoint__json=json.dumps({"endpoint_id": str(uuid.uuid4())}))


def id_of(directory: Path) -> str:
    return str(json.loads((directory / "endpoint.json").read_text())["endpoint_id"])


def test_an_adopted_directory_passes_check_and_keeps_its_id(mep: Cli, directory: Path) -> None:
    said = mep("adopt", str(directory)).stdout
    assert f"is registered: {id_of(directory)}" in said
    assert "error found" in said or "no problem found" in said
    assert said.endswith("Next: mep start site --detach\n")
    assert "kept     display_name" in said
    assert "added    quoting" in said
    assert mep.json("check", "site")["endpoint_id"] == id_of(directory)
    for path in mep.path("etc", "site").iterdir():
        info = path.stat()
        assert pwd.getpwuid(info.st_uid).pw_uid == os.geteuid()
        assert stat.S_IMODE(info.st_mode) == (0o640 if ROOT and path.name == "identity_mapping.json" else 0o600)
    before = sorted(path.name for path in directory.iterdir())
    assert before[0] == "config.yaml"
    assert len(before) == 6
    assert "already has" in mep("adopt", str(directory), expect=1).stderr


def test_its_template_means_what_it_meant(mep: Cli, directory: Path, tmp_path: Path) -> None:
    mep("adopt", str(directory))
    runtime = tmp_path / "runtime.json"
    runtime.write_text('{"globus_compute_sdk_version": "4.19.0"}')
    runtime.chmod(0o644)
    words = ["render", "site", "--runtime", str(runtime), "--options"]
    plain = yaml.safe_load(mep(*words, "ACCOUNT=phy", "--options", "QUEUE=long").stdout)
    assert plain["engine"]["worker_init"].split() == (
        ["#", "for", "SDK", "4.19.0", "export", 'ACCOUNT="phy"', "export", "QUEUE=long"]
    )
    debug = yaml.safe_load(mep(*words, "QUEUE=debug", "--options", "WORKERS=3").stdout)
    assert debug["engine"] == {"type": "ProcessPoolEngine", "max_workers": 3, "worker_init": "echo debugging"}


def test_a_second_copy_needs_an_id_of_its_own(mep: Cli, directory: Path) -> None:
    listed = mep.json("adopt", str(directory), "other", "--dry-run")
    assert {one["name"]: one["fate"] for one in listed["keys"]}["public"] == "kept"
    assert not mep.path("etc", "other").exists()
    mep("adopt", str(directory))
    made = mep.json("adopt", str(directory), "second", "--new-id")
    assert made["endpoint_id"] != id_of(directory)


def test_configure_takes_globus_computes_options(mep: Cli, directory: Path, tmp_path: Path) -> None:
    wanted = id_of(directory)
    mapping = ["--id-mapping-config", str(directory / "example_identity_mapping_config.json")] if ROOT else []
    config = tmp_path / "core.yaml"
    config.write_text("quoting: json\n")
    made = mep.json(
        "configure", *KIND, "site", "--contact-email", "help@example.edu", "--public", "--core-config", str(config),
        "--template-config", str(directory / "user_config_template.yaml.j2"),
        "--schema-config", str(directory / "user_config_schema.json"),
        "--user-env-config", str(directory / "user_environment.yaml"), *mapping, "--display-name", "X",
        "--allowed-domains", "example.edu, *.org", "--excluded-domains", "bad.org",
        "--endpoint-uuid", wanted, "--subscription-id", wanted, "--debug", "--no-color", "--log-to-console",
    )  # fmt: skip
    assert made["endpoint_id"] == wanted
    written = yaml.safe_load(mep.path("etc", "site", "config.yaml").read_text())
    assert (written["allowed_domains"], written["excluded_domains"]) == (["example.edu", "*.org"], ["bad.org"])
    assert (written["email"], written["public"], written["quoting"]) == ("help@example.edu", True, "json")
    for name in ("user_config_template.yaml.j2", "user_config_schema.json", "user_environment.yaml"):
        assert mep.path("etc", "site", name).read_text() == (directory / name).read_text()
    assert mep.json("check", "site")["endpoint_id"] == wanted
    assert f"is registered as {wanted}" in mep("start", "site", "--endpoint-uuid", OTHER_ID, expect=2).stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--auth-policy", OTHER_ID], ["--auth-timeout", "3600"], ["--high-assurance"],
        ["--auth-policy-mfa-required"], ["--auth-policy-project-id", OTHER_ID],
    ],
)  # fmt: skip
def test_what_would_open_the_endpoint_wider_is_refused(mep: Cli, words: list[str]) -> None:
    assert words[0] in mep("configure", "site", *KIND, *words, expect=2).stderr
    assert not mep.path("etc", "site").exists()


def test_debug_lasts_over_a_reload(mep: Cli, directory: Path) -> None:
    mep("adopt", str(directory))
    assert "DEBUG" not in mep.path("etc", "site", "config.yaml").read_text()
    mep("start", "site", "--detach", "--debug")
    (pid,) = (mep.json("status", "site")["pid"],)
    assert pid
    mep("stop", "site")


def run(mep: Cli, *words: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / words[0], *words[1:]], env=mep.environment, cwd=mep.directory, capture_output=True, text=True,
        timeout=100, check=False, **options,
    )  # type: ignore[call-overload,no-any-return] # fmt: skip


def test_the_validator_maps_as_mep_map_does(mep: Cli) -> None:
    mapping = mep.directory / "mapping.json"
    mapping.write_text(json.dumps(MAPPING))
    mapping.chmod(0o644)
    asked = json.dumps([{"id": OTHER_ID, "username": "nobody@example.edu", "status": "used"}])
    done = run(mep, "globus-idm-validator", "-c", str(mapping), "--first", input=asked)
    assert "Local user    nobody" in done.stdout, done.stderr
    assert run(mep, "globus-idm-validator", "-c", "/nosuch", input=asked).returncode == 2


def test_the_diagnostic_is_one_private_file(mep: Cli, directory: Path) -> None:
    mep("adopt", str(directory))
    done = run(mep, "mep-diagnostic", "-l", "site", "--log-kb", "1")
    path = Path(done.stdout.strip())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, done.stderr
    text = gzip.decompress(path.read_bytes()).decode()
    assert all(f"== {part}" in text for part in ("versions", "mep list", "mep status site", "mep check site"))
    assert mep.variables["MEP_TOKEN"] not in text
    for named in (["site"], [mep.json("list")[0]["endpoint_id"].upper()], ["-l", mep.json("list")[0]["endpoint_id"]]):
        assert "== mep status site" in run(mep, "mep-diagnostic", "-p", *named).stdout, named
    for unknown in (["nosuch"], ["--endpoint-log-dirs", "site,nosuch"]):
        done = run(mep, "mep-diagnostic", *unknown)
        assert (done.returncode, "there is no endpoint nosuch here" in done.stderr) == (4, True), (unknown, done)
    for other in (["gce", "self-diagnostic"], ["globus-compute-diagnostic"]):
        assert run(mep, *other, "-p").stdout.startswith("== versions")
