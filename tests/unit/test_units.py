"""The shipped systemd files: read by systemd itself where it is installed, and agreeing with the rest of the tree."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mep.cli.boot_commands import USER_UNIT
from mep.config.paths import MANAGER_ACCOUNT, MAPPER_ACCOUNT, REGISTER_ACCOUNT, RELAY_ACCOUNT
from relay.state_dir import ACCOUNT, DEFAULT_AS_ROOT

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNITS = ("mep-relay.service", "mep@.service", "mep.slice")
ANALYZE = shutil.which("systemd-analyze")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # the documented way to keep upper case
    parser.read(SYSTEMD / name)
    return parser


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed here; tests/vm has it")
def test_systemd_finds_nothing_in_a_unit(tmp_path: Path, name: str) -> None:
    """With a command that exists in place of ours, which is not installed everywhere."""
    text = re.sub(r"/opt/mep/bin/[a-z-]+", "/bin/true", (SYSTEMD / name).read_text())
    copy = tmp_path / name.replace("@", "@site")
    copy.write_text(text)
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_persons_unit_is_the_same_with_and_without_the_package() -> None:
    assert USER_UNIT.format(command="/opt/mep/bin/mep") == (SYSTEMD / "user" / "mep@.service").read_text()


def test_the_relay_runs_where_and_as_it_would_without_a_unit() -> None:
    service = unit("mep-relay.service")["Service"]
    assert service["User"] == service["Group"] == ACCOUNT == RELAY_ACCOUNT
    assert f"/var/lib/{service['StateDirectory']}" == str(DEFAULT_AS_ROOT)
    assert service["ExecStart"].endswith(f"serve --state {DEFAULT_AS_ROOT}")


@pytest.mark.skipif(ANALYZE is None, reason="systemd is not installed here")
def test_the_relay_is_exposed_little() -> None:
    done = subprocess.run(
        [str(ANALYZE), "security", "--offline=yes", "--json=short", str(SYSTEMD / "mep-relay.service")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode and "nrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a unit that is not loaded")
    exposed = {one["name"]: one for one in json.loads(done.stdout) if one.get("set") is False}
    assert not {"NoNewPrivileges=", "ProtectSystem=", "ProtectHome=", "PrivateDevices="} & set(exposed)


def test_the_accounts_are_those_that_the_programs_look_for() -> None:
    lines = (SYSTEMD / "sysusers.d" / "mep.conf").read_text().splitlines()
    made = {line.split()[1] for line in lines if line and not line.startswith("#")}
    assert made == {MANAGER_ACCOUNT, MAPPER_ACCOUNT, REGISTER_ACCOUNT, RELAY_ACCOUNT}
