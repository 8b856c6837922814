"""The leftovers of a killed run are cleared up by the next, and nothing of a run that goes on is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sitekit import accounts, ledger
from sitekit.errors import SiteError
from sitekit.site import Site

from tests.support import leftovers

DEMO = Path(__file__).resolve().parents[2] / "demo"
RUN = """
import subprocess, sys, time
from pathlib import Path
from sitekit.ledger import Ledger
ledger = Ledger()
ledger.path(Path(sys.argv[1]))
Path(sys.argv[1]).mkdir()
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
ledger.process(child.pid)
print(child.pid, flush=True)
time.sleep(600)
"""


def _run(directory: Path) -> tuple[subprocess.Popen[str], int]:
    argv = [sys.executable, "-c", RUN, str(directory)]
    process = subprocess.Popen(argv, env={"PYTHONPATH": str(DEMO)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_what_a_killed_run_left_is_cleared_up(tmp_path: Path) -> None:
    process, child = _run(tmp_path / "site")
    process.kill()
    process.wait()
    assert ledger.start_ticks(child) is not None
    assert any(str(process.pid) in line for line in ledger.sweep())
    assert ledger.start_ticks(child) is None
    assert not (tmp_path / "site").exists()


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    process, child = _run(tmp_path / "site")
    try:
        assert not any(str(process.pid) in line for line in ledger.sweep())
        assert ledger.start_ticks(child) is not None
        assert (tmp_path / "site").exists()
    finally:
        process.kill()
        process.wait()
        ledger.sweep()


def test_a_process_that_has_the_number_of_a_recorded_one_is_not_ended() -> None:
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        ticks = ledger.start_ticks(bystander.pid)
        assert ticks is not None
        ledger.end_processes([(bystander.pid, ticks - 1)])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_sessions_processes_are_known_by_their_mark() -> None:
    ended = subprocess.Popen(["sleep", "600"])
    marks = [f"{ended.pid}-{ledger.start_ticks(ended.pid)}", os.environ[leftovers.MARK], ""]
    ended.kill()
    ended.wait()
    started = [subprocess.Popen(["sleep", "600"], env={leftovers.MARK: mark}) for mark in marks]
    try:
        found = {pid for pid, _ in leftovers.orphans()}
        assert [one.pid in found for one in started] == [True, False, False]
    finally:
        for one in started:
            one.kill()
            one.wait()


@pytest.mark.parametrize("is_removed", [False, True])
def test_the_users_of_a_directory_are_found_by_their_open_files(tmp_path: Path, is_removed: bool) -> None:
    (tmp_path / "a-1").mkdir()
    with (tmp_path / "a-1" / "log").open("w") as log:
        user = subprocess.Popen(["sleep", "600"], stdout=log)
    try:
        if is_removed:
            shutil.rmtree(tmp_path / "a-1")
        assert [pid for pid, _ in leftovers.users_of(f"{tmp_path}/a-")] == [user.pid]
        assert not leftovers.users_of(f"{tmp_path}/b-")
    finally:
        user.kill()
        user.wait()


@pytest.mark.parametrize("name", ["root", "alice", "meptest"])
def test_only_throwaway_accounts_are_ever_removed(name: str) -> None:
    with pytest.raises(ValueError, match="throw-away"):
        accounts.remove(name)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "ledgers"
    monkeypatch.setattr(ledger, "_place", lambda: path)
    return path


def test_the_directory_is_made_for_its_owner_alone(directory: Path) -> None:
    assert ledger.directory() == directory
    assert (directory.lstat().st_mode & 0o777, directory.lstat().st_uid) == (0o700, os.geteuid())


def test_a_directory_that_others_may_enter_is_refused_in_words(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(SiteError, match=r"ledgers must be a directory of yours alone .* drwxr-xr-x"):
        ledger.directory()


def test_a_link_and_a_file_are_refused_in_words(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SiteError, match="yours alone"):
        ledger.directory()
    directory.unlink()
    directory.write_text("")
    with pytest.raises(SiteError, match="cannot be made: File exists"):
        ledger.directory()


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused_in_words(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 65534, 65534)
    with pytest.raises(SiteError, match="belongs to uid 65534"):
        ledger.directory()


def test_nobody_else_can_make_what_root_uses() -> None:
    found = ledger._place()
    if os.geteuid() == 0:
        assert found == Path("/run/mep-sites")
    else:
        assert str(os.geteuid()) in str(found)


@pytest.mark.root
def test_an_account_that_no_run_made_is_left_alone() -> None:
    name = f"meptest-{os.getpid()}-other"
    subprocess.run(["useradd", "--no-create-home", name], check=True)
    try:
        with Site("meptest") as site:
            for make in (site.account, site.group):
                with pytest.raises(SiteError, match=f"there is account {name} already"):
                    make(name)
        assert accounts.existing(name)
    finally:
        accounts.remove(name)
