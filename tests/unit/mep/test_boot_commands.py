"""enable-on-boot and disable-on-boot: the words that systemctl gets, and the texts. tests/vm has a real systemd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mep.cli import boot_commands
from mep.config.paths import EndpointPaths

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SYSTEMCTL = '#!/bin/sh\necho "$@" >> {log}\necho "the stand-in says no" >&2\nexit {code}\n'


@pytest.fixture
def mep(tmp_path: Path) -> Run:
    """The command with a systemctl that writes its words down, as root or as the account that runs the tests."""
    root = os.geteuid() == 0
    directory = tmp_path / "etc" / "site" if root else tmp_path / ".mep" / "site"
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text("relay_url: https://relay.example.org\n")
    (tmp_path / "bin").mkdir()

    def run(*words: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "bin" / "systemctl"
        if code is None:
            program.unlink(missing_ok=True)
        else:
            program.write_text(SYSTEMCTL.format(log=tmp_path / "words", code=code))
            program.chmod(0o755)
        environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        environment |= {f"MEP_{name}": str(tmp_path / name.lower()) for name in ("ETC", "VAR", "RUN") if root}
        argv = [sys.executable, "-I", "-m", "mep.cli", *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=60)

    return run


MANAGER = [] if os.geteuid() == 0 else ["--user"]


def test_both_tell_systemctl_and_how_to_go_on(mep: Run, tmp_path: Path) -> None:
    done = mep("enable-on-boot", "site")
    start = " ".join(["systemctl", *MANAGER, "start", "mep@site.service"])
    assert (done.returncode, done.stdout) == (0, f"systemd starts endpoint site at boot. To start it now: {start}\n")
    assert mep("disable-on-boot", "site", "--json").returncode == 0
    words = [" ".join([*MANAGER, verb, "mep@site.service"]) for verb in ("enable", "disable")]
    assert (tmp_path / "words").read_text().splitlines() == words


def test_a_refusal_of_systemctl_comes_with_a_remedy(mep: Run) -> None:
    done = mep("enable-on-boot", "site", code=1)
    assert done.returncode == 1
    assert "the stand-in says no" in done.stderr
    assert ("mep-endpoint" if os.geteuid() == 0 else "enable-linger") in done.stderr


def test_without_systemd_the_text_says_what_to_start(mep: Run) -> None:
    done = mep("enable-on-boot", "site", code=None)
    assert done.returncode == 1
    assert "`mep start site`" in done.stderr


def test_an_endpoint_that_is_not_there(mep: Run, tmp_path: Path) -> None:
    assert mep("enable-on-boot", "elsewhere").returncode == 4
    assert not (tmp_path / "words").exists()


def test_a_units_monitor_is_known_to_the_systemd_of_rhel_8_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\ncase "$*" in *" --value "*) echo 4711;; *) exit 1;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(boot_commands, "under_systemd", lambda: True)
    where = EndpointPaths("site", tmp_path, tmp_path, tmp_path, privileged=True)
    assert boot_commands.runs_in_unit(where, 4711)
    assert not boot_commands.runs_in_unit(where, 4712), "another process"
