"""A task's view of its own process: nothing of root, nothing inherited, its own session."""

from __future__ import annotations

from typing import Any

import pytest

RESULT_S = 60


def facts() -> dict[str, Any]:
    import os
    import pathlib

    status = {}
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":\t")
        status[key] = value.strip()

    def regains(call: Any, *args: int) -> bool:
        try:
            call(*args)
        except OSError:
            return False
        return True

    mask = os.umask(0o077)
    os.umask(mask)
    return {
        "regained": {
            "setuid": regains(os.setuid, 0),
            "seteuid": regains(os.seteuid, 0),
            "setresuid": regains(os.setresuid, 0, 0, 0),
            "setgid": regains(os.setgid, 0),
        },
        "capabilities": {key: int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")},
        "no_new_privs": status["NoNewPrivs"],
        "umask": mask,
        "sid": os.getsid(0),
        "descriptors": {
            number: os.readlink(f"/proc/self/fd/{number}")
            for number in map(int, os.listdir("/proc/self/fd"))
            if os.path.lexists(f"/proc/self/fd/{number}")
        },
        "environment": dict(os.environ),
        "reads_shadow": os.access("/etc/shadow", os.R_OK),
    }


@pytest.fixture(scope="module")
def found(multi_user: Any) -> dict[str, Any]:
    with multi_user.executor("alice") as executor:
        result: dict[str, Any] = executor.submit(facts).result(timeout=RESULT_S)
    return result


pytestmark = pytest.mark.root


def test_root_cannot_be_regained(found: dict[str, Any]) -> None:
    assert not any(found["regained"].values()), found["regained"]
    assert not found["reads_shadow"]


def test_no_capability_is_left_nor_can_be_gained(found: dict[str, Any]) -> None:
    assert not any(found["capabilities"].values()), found["capabilities"]
    assert found["no_new_privs"] == "1"


def test_files_are_private_by_default(found: dict[str, Any]) -> None:
    assert found["umask"] == 0o077


def test_it_has_a_session_of_its_own(found: dict[str, Any], multi_user: Any) -> None:
    import os

    assert found["sid"] not in {os.getsid(0), os.getsid(int(multi_user.endpoint.status()["pid"]))}


def test_nothing_is_inherited_from_root(found: dict[str, Any], multi_user: Any) -> None:
    """Its own pipes and sockets are fine; files of the endpoint, of root or of the relay are not."""
    root = str(multi_user.site.root)
    home = str(multi_user.accounts["alice"].home)
    foreign = [name for name in found["descriptors"].values() if name.startswith(root) and not name.startswith(home)]
    assert not foreign
    assert not [name for name in found["descriptors"].values() if "memfd:mep" in name]


def test_the_environment_is_the_persons(found: dict[str, Any], multi_user: Any) -> None:
    environment = found["environment"]
    account = multi_user.accounts["alice"]
    assert environment["HOME"] == str(account.home)
    assert environment["USER"] == environment["LOGNAME"] == account.name
    assert not [name for name in environment if name.startswith(("MEP_", "SUDO", "SSH", "PYTHON"))]
    assert "/root" not in " ".join(environment.values())
