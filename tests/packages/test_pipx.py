"""`pipx install` of the service's wheel by an account without privilege, then an endpoint of its own and a task."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
from pathlib import Path

import pytest
from sitekit.daemon import command
from sitekit.site import Site

from mep_sdk import Executor
from tests.support import package_builds

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]


def who_and_where() -> tuple[str, str]:
    return getpass.getuser(), sys.prefix


def test_an_endpoint_of_ones_own_by_pipx(tmp_path_factory: pytest.TempPathFactory) -> None:
    built = package_builds.built(tmp_path_factory)
    wheels = package_builds.wheelhouse() / "wheelhouse" / package_builds.RUNNING
    with Site("meptest-pipx") as site:
        site.start_relay()
        person = site.relay.add_person("alice@example.edu")
        own = site.account(f"meptest-{secrets.token_hex(4)}")
        wheel = site.root / "mep-0.1.0-py3-none-any.whl"
        wheel.write_bytes(next(built.glob("mep-*.whl")).read_bytes())
        wheel.chmod(0o644)
        token = site.root / "home" / own.name / "token"
        token.write_text(person.token)
        token.chmod(0o600)
        os.chown(token, own.uid, own.gid)
        # The wheels of the lock files and nothing else: no index is asked.
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
        command("pipx", "install", wheel, env=offline, run_as=own, timeout_s=300)
        mep = Path(own.home, ".local", "bin", "mep")
        command(mep, "configure", "laptop", "--relay", person.relay_url, "--token-file", token, env={}, run_as=own)
        command(mep, "check", "laptop", env={}, run_as=own)
        command(mep, "start", "laptop", "--detach", env={}, run_as=own)
        try:
            (found,) = endpoints(command(mep, "list", "--json", env={}, run_as=own))
            with Executor(endpoint_id=found, relay_url=person.relay_url, token=person.token) as executor:
                name, prefix = executor.submit(who_and_where).result(60)
            assert (name, prefix) == (own.name, f"{own.home}/.local/pipx/venvs/mep")
        finally:
            command(mep, "stop", "laptop", env={}, run_as=own)
        command("pipx", "uninstall", "mep", env={}, run_as=own)
        assert not mep.exists()
        assert not mep.is_symlink()


def endpoints(listed: str) -> list[str]:
    """Return the ids of `mep list --json`."""
    return [each["endpoint_id"] for each in json.loads(listed)]
