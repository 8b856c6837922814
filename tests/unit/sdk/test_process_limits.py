"""Which failures of a function are blamed on a limit on processes and threads."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mep_sdk.process_limits import ProcessWatch
from tests.support.accounts import unshared_uid

TEXT = "TOO_MANY_PROCESSES: Your process at the site reached its limit of processes and threads ({limit}). Start fewer."


class Groups:
    """A scope in a person's slice in an endpoint's, as files of control groups are."""

    def __init__(self, root: Path) -> None:
        self.scope = root / "mep.slice" / "mep-site.slice" / "mep-site-1000.slice" / "mep-site-uep.scope"
        self.scope.mkdir(parents=True)
        self.person = self.scope.parent
        (root / "self").write_text(
            "1:name=systemd:/x\n0::/mep.slice/mep-site.slice/mep-site-1000.slice/mep-site-uep.scope\n"
        )
        self.watch = ProcessWatch(str(root / "self"), str(root))

    def write(self, group: Path, limit: str, refused: int) -> None:
        (group / "pids.max").write_text(f"{limit}\n")
        (group / "pids.events").write_text(f"max {refused}\n")


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def refused() -> OSError:
    return OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_the_user_endpoints_own_limit(groups: Groups) -> None:
    groups.write(groups.scope, "40", 3)
    assert groups.watch.explain(refused()) == TEXT.format(limit="limit 40")
    assert groups.watch.explain(refused()) == "", "nothing was refused since"
    groups.write(groups.scope, "40", 4)
    assert groups.watch.explain(RuntimeError("can't start new thread")) == TEXT.format(limit="limit 40")


@pytest.mark.parametrize("counted_at", ["scope", "person"])
def test_the_limit_of_all_that_a_person_has(groups: Groups, counted_at: str) -> None:
    """Kernels before 6.11 count a refusal in the group that forked, later ones where the limit is."""
    groups.write(groups.scope, "max", int(counted_at == "scope"))
    groups.write(groups.person, "50", int(counted_at == "person"))
    assert groups.watch.explain(refused()) == TEXT.format(limit="limit 50")


def test_what_it_came_from(groups: Groups) -> None:
    groups.write(groups.scope, "40", 1)
    try:
        try:
            raise refused()
        except OSError as error:
            raise ValueError("no pool") from error
    except ValueError as error:
        assert "limit 40" in groups.watch.explain(error)


class Odd(RuntimeError):
    def __str__(self) -> str:
        raise KeyError


@pytest.mark.parametrize(
    "error", [ValueError(), OSError(errno.ENOMEM, "x"), RuntimeError("other"), Odd("x"), KeyboardInterrupt()]
)
def test_other_failures(groups: Groups, error: BaseException) -> None:
    groups.write(groups.scope, "40", 1)
    assert groups.watch.explain(error) == ""


def test_nothing_was_refused(groups: Groups) -> None:
    """A socket that would block says the same."""
    groups.write(groups.scope, "40", 0)
    assert groups.watch.explain(refused()) == ""


def test_no_control_group(tmp_path: Path) -> None:
    assert ProcessWatch(str(tmp_path / "none"), str(tmp_path)).explain(refused()) == ""


LIMITED = """
import os, resource, signal
from mep_sdk.process_limits import ProcessWatch, _account_limit
resource.setrlimit(resource.RLIMIT_NPROC, (20, 20))
pids, said = [], _account_limit()
try:
    while len(pids) < 40:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except BlockingIOError as error:
    said = repr((said, ProcessWatch("/none").explain(error)))
finally:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
print(said)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="takes an account that has no other processes")
def test_the_limit_of_the_account() -> None:
    uid = unshared_uid()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        user=uid,
        group=uid,
        extra_groups=[],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == repr(("", TEXT.format(limit="limit of your account 20")))
