"""The tasks that workers begin are known to the process that gives them up, and no task begins after that."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep_wire.errors import EngineFailed
from tests.contract.test_engines import Bench, echo
from user_endpoint.engines import EngineContext, make_engine, start_journals
from user_endpoint.engines.start_journals import KEEP_S, StartJournals
from user_endpoint.settings import EngineSettings, ProcessPoolSettings, ThreadPoolSettings
from user_endpoint.workers import start_journal
from user_endpoint.workers.fork_server import exec_server


@pytest.fixture
def notes(tmp_path: Path) -> StartJournals:
    made = StartJournals(str(tmp_path))
    made.look_back()
    return made


def worker(directory: str, name: str = "pool.0", how: str = start_journal.FENCED) -> start_journal.StartJournal:
    path = f"{directory}/{name}"
    start_journal.create(path, how)
    return start_journal.StartJournal(path, how)


def later(tmp_path: Path) -> StartJournals:
    """The start journals as the next process of this user endpoint sees them."""
    made = StartJournals(str(tmp_path))
    made.look_back()
    return made


@pytest.mark.parametrize("how", [start_journal.PLAIN, start_journal.FENCED, start_journal.FORCED])
def test_what_was_begun_is_known_to_the_next_process_and_to_the_one_after(
    tmp_path: Path, notes: StartJournals, how: str
) -> None:
    log = worker(notes.open(), how=how)
    assert all(log.note(row, f"task-{row}") for row in (1, 2, 3))
    for _ in range(2):
        after = later(tmp_path)
        assert [after.was_begun(f"task-{row}", 1) for row in (1, 2, 3, 4)] == [True, True, True, False]
    assert not after.was_begun("task-1", 1), "told already: it is run again where that is allowed"


def test_another_attempt_at_the_task_is_another_matter(tmp_path: Path, notes: StartJournals) -> None:
    assert worker(notes.open()).note(1, "task", 1)
    assert not later(tmp_path).was_begun("task", 2)


def test_a_worker_of_the_process_before_begins_nothing_more(tmp_path: Path, notes: StartJournals) -> None:
    directory = notes.open()
    log = worker(directory)
    assert log.note(1, "before")
    after = later(tmp_path)
    assert not log.note(2, "after")
    assert not after.was_begun("after", 1)
    assert not Path(directory).exists()
    with pytest.raises(start_journal.JournalClosed):
        start_journal.StartJournal(f"{directory}/pool.0", start_journal.FENCED)


def test_only_the_pool_that_is_given_up_is_fenced_off(notes: StartJournals) -> None:
    directory = notes.open()
    one, other = worker(directory, "one.0"), worker(directory, "other.0")
    assert one.note(1, "a")
    assert other.note(2, "b")
    assert notes.close_pool(directory, "one") == {1}
    assert not one.note(3, "c")
    assert other.note(4, "d")
    assert notes.close(directory) == {2, 4}
    assert not other.note(5, "e")


def test_a_worker_that_takes_anothers_place_goes_on_in_its_file(notes: StartJournals) -> None:
    directory = notes.open()
    first = worker(directory)
    assert first.note(1, "a")
    second = start_journal.StartJournal(f"{directory}/pool.0", start_journal.FENCED)
    assert second.note(2, "b")
    assert notes.close(directory) == {1, 2}


def test_no_task_begins_unseen_however_the_two_meet(notes: StartJournals) -> None:
    """The worker begins as fast as it can while its place is given up: what it was allowed to begin is known."""
    for _ in range(30):
        directory = notes.open()
        log = worker(directory)
        allowed: list[int] = []

        def work(log: start_journal.StartJournal = log, allowed: list[int] = allowed) -> None:
            while log.note(len(allowed) + 1, "task"):
                allowed.append(len(allowed) + 1)

        thread = threading.Thread(target=work)
        thread.start()
        while len(allowed) < 20:
            pass
        known = notes.close(directory)
        thread.join()
        assert set(allowed[-1000:]) <= known
        assert len(known - set(allowed)) <= 1  # one that it had noted, and then was not allowed


def test_the_reader_sees_the_last_begun(notes: StartJournals) -> None:
    path = f"{notes.open()}/p.0"
    start_journal.create(path, start_journal.PLAIN)
    view, log = start_journal.JournalView(path), start_journal.StartJournal(path, start_journal.PLAIN)
    assert view.last() == 0
    for row in range(1, 3000):
        log.note(row, "t")
        assert view.last() == row


def test_what_has_had_its_end_is_forgotten(tmp_path: Path, notes: StartJournals) -> None:
    directory = notes.open()
    worker(directory).note(1, "done")
    notes.forget(directory)
    assert not later(tmp_path).was_begun("done", 1)


def test_old_notes_are_not_kept_for_ever(tmp_path: Path, notes: StartJournals) -> None:
    worker(notes.open()).note(1, "old")
    assert later(tmp_path).was_begun("old", 1)
    (kept,) = (tmp_path / "begun" / "closed").iterdir()
    os.utime(kept, (0, os.stat(kept).st_mtime - KEEP_S - 1))
    assert later(tmp_path).was_begun("old", 1), "a clock that was set ahead makes no task run twice"
    assert not kept.exists()
    assert not later(tmp_path).was_begun("old", 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A run directory on a disk of 256 KiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "meptest", str(tmp_path)], check=True)
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(directory: Path) -> None:
    with pytest.raises(OSError, match="No space"), (directory / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@pytest.mark.root
def test_a_full_disk_hides_nothing_that_had_begun(small_disk: Path) -> None:
    """No task that earlier processes had begun runs again: the last one's are in journals, the others' in keys."""
    worker(later(small_disk).open()).note(1, "two before")
    worker(later(small_disk).open()).note(1, "before")
    fill(small_disk)
    for _ in range(2):
        after = StartJournals(str(small_disk))
        after.begin()
        assert after.known
        assert after.was_begun("two before", 1)
        assert after.was_begun("before", 1)
    (small_disk / "full").unlink()
    after = later(small_disk)
    assert after.was_begun("two before", 1) and after.was_begun("before", 1)
    assert [path.name[:5] for path in (small_disk / "begun" / "closed").iterdir()] == ["keys-"] * 2


@pytest.mark.parametrize(("number", "raised"), [(errno.EMFILE, OSError), (errno.EIO, EngineFailed)])
def test_nothing_begins_where_earlier_notes_cannot_be_read(
    tmp_path: Path, notes: StartJournals, number: int, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(notes.open()).note(1, "before")

    def unreadable(path: str) -> dict[int, bytes]:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(start_journals, "read_notes", unreadable)
    with pytest.raises(raised):
        StartJournals(str(tmp_path)).begin()
    monkeypatch.undo()
    after = StartJournals(str(tmp_path))
    assert after.begin()
    assert after.was_begun("before", 1)


def test_a_file_that_is_no_notes_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 100)
    assert start_journal.read_notes(str(tmp_path / "short")) == {}
    assert start_journal.read_notes(str(tmp_path / "absent")) == {}


@pytest.mark.parametrize("settings", [ProcessPoolSettings(max_workers=1), ThreadPoolSettings(max_workers=1)], ids=str)
def test_engines_begin_nothing_twice_and_leave_no_notes(
    tmp_path: Path, notes: StartJournals, settings: EngineSettings
) -> None:
    worker(notes.open()).note(1, "task-1")
    engine = make_engine(settings, EngineContext(str(tmp_path), str(tmp_path / "log"), exec_server))
    engine.start()
    bench = Bench(engine)
    try:
        rows = [bench.submit(echo, number) for number in range(3)]
        assert [item.code for item in bench.wait(*rows)] == ["USER_ENDPOINT_LOST", "", ""]
        (directory,) = (tmp_path / "begun").glob("open-*")
        keys = {key for path in directory.iterdir() for key in start_journal.read_notes(str(path)).values()}
        assert keys == {start_journal.key_of("task-2", 1), start_journal.key_of("task-3", 1)}
    finally:
        engine.stop(2.0)
    assert not list((tmp_path / "begun").glob("open-*"))
