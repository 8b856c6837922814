"""The playbook for a fleet: by ansible-lint and yamllint, and run on a booted Debian."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.packages.test_booted import HERE, NEEDED, VM, debs, shown
from tests.support import debian, package_builds, waiting

DEPLOY = package_builds.ROOT / "packaging" / "deploy"
ANSIBLE = ("ansible-core", "python3-apt", "python3-cffi-backend")
"""debootstrap does not find the last one, which python3-cryptography names by what it provides."""
PLAYBOOK = DEPLOY / "playbook.yml"
YAMLLINT = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


def lint(*argv: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HOME": str(home), "NO_COLOR": "1"}
    return subprocess.run(  # ansible refuses an input that doesn't block, as a runner's may be
        [*argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=home, env=environment,
        timeout=300,
    )  # fmt: skip


def test_ansible_lint_finds_nothing(tmp_path: Path) -> None:
    """With its strictest profile: a module by its short name, for instance, is a finding."""
    done = lint("ansible-lint", "--offline", "--strict", "--profile", "production", PLAYBOOK, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_yamllint_finds_nothing(tmp_path: Path) -> None:
    done = lint("yamllint", "--strict", "-d", YAMLLINT, *sorted(DEPLOY.glob("*.y*ml")), home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_playbook_on_a_booted_debian(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    built = package_builds.built(tmp_path_factory)
    root = debian.system(debian.running_release(), (*debian.BOOTED, *NEEDED, *ANSIBLE))
    files = debs(built) | {
        HERE / "guest_playbook.py": "guest_playbook.py",
        VM / "guest_readme.py": "guest_readme.py",
        Path(waiting.__file__): "waiting.py",
        package_builds.ROOT / "README.md": "README.md",
        PLAYBOOK: "playbook.yml",
    }
    result = debian.boot(root, "exec /usr/bin/python3 /guest/guest_playbook.py", files, tmp_path)
    print(shown(result))
    assert result.status == 0, result.log[-4000:]
    assert result.log.count("PASSED") == 3
