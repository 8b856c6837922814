"""A keeper's directory: its record is read back as written, its lock names the living, its socket those who listen."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mep.boundary.runtime_files import KEEPER_LOCK, lock_holder, open_keeper
from mep.root.kernel.keeper_record import Records, new_record
from mep.root.kernel.unix_socket import connect, listen, peer_of


@pytest.fixture
def records(tmp_path: pathlib.Path) -> Records:
    (tmp_path / "keepers").mkdir()
    made = Records(str(tmp_path))
    made.make("uep")
    return made


def test_as_written(records: Records) -> None:
    written = new_record("uep", "alice", "corr")
    records.write(written)
    assert records.read("uep") == written
    assert records.ids() == ["uep"]
    records.remove("uep")
    assert records.ids() == [] and records.read("uep") is None


def test_of_an_older_version(records: Records) -> None:
    written = new_record("uep", "alice", "corr")
    records.write(written)
    path = pathlib.Path(records.path("uep"), "record.json")
    value = json.loads(path.read_text())
    del value["cgroup"], value["person"]
    value["executable"] = "/usr/bin/python3"
    path.write_text(json.dumps(value))
    assert records.read("uep") == written


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "{}", '{"uep_id": 4}', '{"uep_id": "uep", "more": 1}', "{"])
def test_damaged(records: Records, text: str) -> None:
    pathlib.Path(records.path("uep"), "record.json").write_text(text)
    assert records.read("uep") is None


def test_a_new_process_begins_without_what_the_former_left(records: Records) -> None:
    records.note_mapped("uep", 1.0)
    assert records.mapped_at("uep") == 1.0
    records.make("uep")
    assert records.mapped_at("uep") == 0.0


def test_what_is_no_directory_is_no_keeper(records: Records, tmp_path: pathlib.Path) -> None:
    (tmp_path / "keepers" / "former.json").touch()
    (tmp_path / "keepers" / "link").symlink_to("uep")
    assert records.ids() == ["uep"]


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o755, 0o770])
def test_a_directory_that_others_may_enter_is_refused(records: Records, mode: int) -> None:
    records.check("uep")
    os.chmod(records.path("uep"), mode)
    with pytest.raises(PermissionError):
        records.check("uep")


def test_a_link_in_place_of_the_directory_is_refused(records: Records, tmp_path: pathlib.Path) -> None:
    (tmp_path / "keepers" / "link").symlink_to("uep")
    with pytest.raises(PermissionError):
        records.check("link")


_HOLD = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
if os.fork() == 0:
    time.sleep(600)
print("held", flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_the_lock_names_the_process_and_no_child_of_it(records: Records) -> None:
    """A child outlives its parent, as a PAM process may outlive its keeper: it isn't taken for the keeper."""
    directory = records.path("uep")
    assert open_keeper(directory) is None
    words = [sys.executable, "-c", _HOLD, f"{directory}/{KEEPER_LOCK}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        found = open_keeper(directory)
        assert found is not None and found[0] == holder.pid
        os.close(found[1])
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()
        assert open_keeper(directory) is None
        os.killpg(holder.pid, 9)


def test_a_lock_of_this_process_is_not_seen_by_itself(records: Records) -> None:
    """fcntl(2) reports locks that are in the way: a process's own is not. So the holder is always another one."""
    descriptor = os.open(f"{records.path('uep')}/{KEEPER_LOCK}", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    assert lock_holder(descriptor) == 0
    os.close(descriptor)


def test_each_side_knows_the_other(records: Records) -> None:
    directory = records.path("uep")
    with listen(directory, "socket") as listener, connect(directory, "socket") as made:
        accepted, _ = listener.accept()
        assert peer_of(accepted) == peer_of(made) == (os.getpid(), os.geteuid(), os.getegid())
        accepted.close()
    with pytest.raises(ConnectionRefusedError):
        connect(directory, "socket")


def test_a_keeper_that_accepts_nothing_does_not_block_the_monitor(records: Records) -> None:
    directory = records.path("uep")
    with listen(directory, "socket"):
        made = []
        with pytest.raises(BlockingIOError):
            while len(made) < 100:
                made.append(connect(directory, "socket"))
        for one in made:
            one.close()


def test_a_long_path_is_no_trouble(tmp_path: pathlib.Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    (deep / "keepers").mkdir(parents=True)
    records = Records(str(deep))
    records.make("uep")
    with listen(records.path("uep"), "socket"), connect(records.path("uep"), "socket"):
        pass
