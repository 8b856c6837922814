"""Home directories that are traps, full, or changed under a starting process: a clear error; others aren't affected."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import MepError
from tests.support.campus import make_campus

RESULT_S = 60
TEMPLATE = "engine: {type: ProcessPoolEngine, max_workers: 1}\n# {{ project | default('') }}\nidle_heartbeats_soft: 0\n"
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    """A running multi-user endpoint. Its user endpoints keep their files in the home directories."""
    with make_campus("multi", "homes", TEMPLATE) as made:
        made.endpoint.start()
        yield made


def outcome(site: Any, who: str, project: str) -> MepError | int:
    """Return the outcome of a task: its result, or its error."""
    with site.executor(who, project=project) as executor:
        try:
            return int(executor.submit(pow, 2, 3).result(timeout=RESULT_S))
        except MepError as error:
            return error


def _link_to_bob(home: Path, bob: Path) -> None:
    (bob / "target").mkdir(exist_ok=True)
    os.chmod(bob / "target", 0o777)
    (home / ".mep").symlink_to(bob / "target")


def _dangling(home: Path, _bob: Path) -> None:
    (home / ".mep").symlink_to("/nonexistent/nowhere")


def _fifo(home: Path, _bob: Path) -> None:
    os.mkfifo(home / ".mep")


def _roots_own(home: Path, _bob: Path) -> None:
    (home / ".mep").mkdir(mode=0o700)


def _writable(home: Path, _bob: Path) -> None:
    (home / ".mep").mkdir()
    os.chmod(home / ".mep", 0o777)
    owner = home.stat()
    os.chown(home / ".mep", owner.st_uid, owner.st_gid)


@pytest.mark.parametrize(
    ("trap", "said"),
    [
        (_link_to_bob, "symbolic link"),
        (_dangling, "symbolic link"),
        (_fifo, "Not a directory"),
        (_roots_own, "Permission denied"),
        (_writable, "written by others"),
    ],
)
def test_a_trap_in_place_of_the_directory(site: Any, trap: Callable[[Path, Path], None], said: str) -> None:
    alice, bob = site.accounts["alice"], site.accounts["bob"]
    with _put_aside(alice.home / ".mep"):
        trap(alice.home, bob.home)
        error = outcome(site, "alice", trap.__name__)
    assert isinstance(error, MepError), error
    assert error.code == "HOME_UNUSABLE"
    assert said in error.text
    assert not (bob.home / "target").exists() or not list((bob.home / "target").iterdir())
    assert outcome(site, "bob", "other") == 8


@contextlib.contextmanager
def _put_aside(path: Path) -> Iterator[None]:
    aside = path.with_name(path.name + ".aside")
    if path.exists():
        path.rename(aside)
    try:
        yield
    finally:
        subprocess.run(["rm", "-rf", str(path)], check=True)
        if aside.exists():
            aside.rename(path)


def test_no_home_at_all(site: Any) -> None:
    with _put_aside(site.accounts["alice"].home):
        error = outcome(site, "alice", "homeless")
    assert isinstance(error, MepError), error
    assert (error.code, "No such file" in error.text) == ("HOME_UNUSABLE", True), error
    assert outcome(site, "bob", "other") == 8


def test_a_home_that_is_full(site: Any) -> None:
    """A disk that was filled before the start, and another that the person's own task fills."""
    alice = site.accounts["alice"]
    options = f"size=512k,mode=0700,uid={alice.uid},gid={alice.gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "meptest", str(alice.home)], check=True)
    try:
        with site.executor("alice", project="fills it") as executor:
            assert executor.submit(fill, str(alice.home)).result(timeout=RESULT_S) == "No space left on device"
            results = [_result_or_code(executor.submit(pow, 2, 3)) for _ in range(3)]
        assert all(one == 8 or isinstance(one, str) for one in results), results
        error = outcome(site, "alice", "finds it full")
        assert error == 8 or isinstance(error, MepError), error
        print(f"on a full disk: tasks of a running user endpoint {results}, a start: {error}")
        assert outcome(site, "bob", "other") == 8
    finally:
        subprocess.run(["umount", "--lazy", str(alice.home)], check=True)


def _result_or_code(future: Any) -> int | str:
    try:
        return int(future.result(timeout=RESULT_S))
    except MepError as error:
        return error.code


def fill(home: str) -> str:
    import os

    descriptor = os.open(home + "/filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(descriptor, b"x" * 4096)
    except OSError as error:
        return error.strerror or ""
    finally:
        os.close(descriptor)


_RENAMER = """
import os, sys
home, target = sys.argv[1:]
os.chdir(home)
print("ready", flush=True)
while True:
    for a, b in ((".mep", ".real"), (".link", ".mep"), (".mep", ".link"), (".real", ".mep")):
        try:
            os.rename(a, b)
        except OSError:
            pass
"""


def test_renames_under_the_starting_process(site: Any) -> None:
    """Nothing is ever written through the link, whichever moment the start meets."""
    alice, bob = site.accounts["alice"], site.accounts["bob"]
    target = bob.home / "bait"
    target.mkdir()
    os.chmod(bob.home, 0o755)
    os.chmod(target, 0o777)
    with _put_aside(alice.home / ".mep"):
        subprocess.run(
            ["sh", "-c", 'cd "$0" && mkdir .mep && ln -s "$1" .link', str(alice.home), str(target)],
            user=alice.uid, group=alice.gid, extra_groups=[], check=True,
        )  # fmt: skip
        argv = [sys.executable, "-I", "-c", _RENAMER, str(alice.home), str(target)]
        with subprocess.Popen(
            argv, user=alice.uid, group=alice.gid, extra_groups=[], stdout=subprocess.PIPE, cwd="/"
        ) as renamer:
            assert renamer.stdout is not None
            renamer.stdout.readline()
            found = [outcome(site, "alice", f"renames {number}") for number in range(4)]
            renamer.kill()
    assert all(one == 8 or isinstance(one, MepError) for one in found), found
    print([one if isinstance(one, int) else one.code for one in found])
    assert not list(target.iterdir())
    assert outcome(site, "bob", "other") == 8
