"""Data by reference in a user endpoint: tasks that wait for pieces, results that follow theirs, a bounded directory."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import pytest

from mep_wire import messages
from mep_wire.data_frames import DataFrame, Part, encode_data, read_data
from mep_wire.errors import DataUnavailable, RelayUnavailable, ResultTooLarge, StorageFull, TaskCancelled
from mep_wire.limits import MAX_PIECES_WANTED
from tests.unit.user_endpoint.test_endpoint import Stage, result
from user_endpoint.data_cache import DataCache
from user_endpoint.data_transfers import RETRY_S

PIECES = [bytes([number]) * 100 for number in range(7)]


def digest(piece: bytes) -> bytes:
    return hashlib.sha256(piece).digest()


def frame(*pieces: bytes) -> bytes:
    parts = [Part(3, b"", b"abc"), *(Part(len(piece), digest(piece)) for piece in pieces)]
    return encode_data(DataFrame(b"p", "", 1, parts))


class DataStage(Stage):
    """A user endpoint with a directory for data."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.data = directory / "data"
        super().__init__(directory, data_directory=str(self.data))
        self.uep.hello()
        self.welcome_to_data()

    def welcome_to_data(self, most: int = 10_000) -> None:
        self.link.welcomed = True
        self.uep.take([messages.UepWelcome(heartbeat_s=10, max_result_bytes=1000, max_data_bytes=most)])

    def asked(self) -> list[bytes]:
        return [each for message in self.link.take(messages.WantPieces) for each in message.digests]

    def come(self, *pieces: bytes) -> None:
        self.uep.take([messages.Piece(digest=digest(piece), data=piece) for piece in pieces])

    def ends(self) -> list[messages.ResultItem]:
        self.uep.flush()
        return [item for message in self.link.take(messages.Results) for item in message.items]

    def left(self, *pieces: bytes) -> messages.ResultItem:
        """Leave a result's pieces, as a worker does; return the result."""
        for piece in pieces:
            (self.data / digest(piece).hex()).write_bytes(piece)
        return result(1, frame(*pieces))


@pytest.fixture
def stage(tmp_path: pathlib.Path) -> DataStage:
    return DataStage(tmp_path)


def test_a_task_waits_for_pieces_that_are_asked_for_once(stage: DataStage) -> None:
    stage.tasks(1, payload=frame(*PIECES[:2]))
    stage.tasks(2, 3, payload=frame(*PIECES[:3]))
    stage.tasks(4)
    assert [task.row for task in stage.engine.given] == [4]
    assert stage.asked() == [digest(piece) for piece in PIECES[:3]]
    stage.come(PIECES[1], PIECES[0])
    assert [task.row for task in stage.engine.given] == [4, 1]
    stage.come(PIECES[2])
    assert [task.row for task in stage.engine.given] == [4, 1, 2, 3]
    found = read_data(stage.engine.given[-1].payload)
    assert found is not None and found.directory == str(stage.data) and stage.engine.given[-1].function == b"code"
    assert (stage.data / digest(PIECES[2]).hex()).read_bytes() == PIECES[2]
    assert stage.data.stat().st_mode & 0o777 == 0o700
    stage.tasks(5, payload=frame(*PIECES[:3]))
    assert stage.engine.given[-1].row == 5 and not stage.asked()


def test_few_pieces_are_on_their_way(stage: DataStage) -> None:
    stage.tasks(1, payload=frame(*PIECES))
    assert len(stage.asked()) == MAX_PIECES_WANTED == 4
    stage.come(PIECES[0])
    assert stage.asked() == [digest(PIECES[4])]


@pytest.mark.parametrize(
    "piece",
    [
        messages.Piece(digest=digest(PIECES[0]), code="DATA_NOT_FOUND", text="There is none."),
        messages.Piece(digest=digest(PIECES[0]), data=b"other bytes"),
    ],
    ids=["refused", "wrong"],
)
def test_a_piece_that_does_not_come_ends_its_tasks_alone(stage: DataStage, piece: messages.Piece) -> None:
    stage.tasks(1, 2, payload=frame(PIECES[0]))
    stage.tasks(3, payload=frame(PIECES[1]))
    stage.uep.take([piece])
    assert [(item.row, item.code) for item in stage.ends()] == [(1, DataUnavailable.code), (2, DataUnavailable.code)]
    assert not (stage.data / digest(PIECES[0]).hex()).exists()
    stage.come(PIECES[1])
    assert [task.row for task in stage.engine.given] == [3]


def test_a_relay_that_cannot_just_now_is_asked_again(stage: DataStage) -> None:
    stage.tasks(1, payload=frame(PIECES[0]))
    stage.asked()
    stage.uep.take([messages.Piece(digest=digest(PIECES[0]), code=RelayUnavailable.code, text="away")])
    assert not stage.asked() and not stage.ends()
    assert stage.uep.next_deadline() == stage.now + RETRY_S
    stage.now += RETRY_S
    stage.uep.tick()
    assert stage.asked() == [digest(PIECES[0])]


def test_a_broken_link_loses_nothing(stage: DataStage) -> None:
    stage.tasks(1, payload=frame(*PIECES[:2]))
    stage.asked()
    stage.come(PIECES[0])
    stage.link.disconnect("broken")
    stage.welcome_to_data()
    assert stage.asked() == [digest(PIECES[1])]
    stage.come(PIECES[1], PIECES[1])
    assert [task.row for task in stage.engine.given] == [1]


def test_a_waiting_task_is_cancelled_expired_or_given_back(stage: DataStage) -> None:
    stage.tasks(1, 2, payload=frame(PIECES[0]))
    stage.uep.take([messages.CancelTasks(rows=[1])])
    assert [(item.row, item.code) for item in stage.ends()] == [(1, TaskCancelled.code)]
    item = messages.TaskItem(3, "3", "f", frame(PIECES[0]), expires_in_s=5.0)
    stage.uep.take([messages.Tasks(functions=[], tasks=[item])])
    stage.now += 6
    stage.uep.tick()
    assert [(item.row, item.code) for item in stage.ends()] == [(3, "TASK_EXPIRED")]
    stage.uep.stop("STOPPED", "by the test")
    stage.uep.flush()
    assert [message.rows for message in stage.link.take(messages.Returned)] == [[2]]
    assert not stage.engine.given


def test_a_full_disk_ends_the_task_and_says_so(stage: DataStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, os.strerror(28))

    stage.tasks(1, payload=frame(PIECES[0]))
    monkeypatch.setattr(os, "write", full)
    stage.come(PIECES[0])
    monkeypatch.undo()
    (ended,) = stage.ends()
    assert ended.code == DataUnavailable.code and "No space left" in ended.text
    assert [path.name for path in stage.data.iterdir()] == ["limit"]


def test_a_damaged_frame_ends_its_task(stage: DataStage) -> None:
    stage.tasks(1, payload=frame(PIECES[0])[:-3])
    assert [(item.row, item.code) for item in stage.ends()] == [(1, DataUnavailable.code)]


# --- results ------------------------------------------------------------------------------------------------


def test_a_result_follows_its_pieces(stage: DataStage) -> None:
    stage.tasks(1)
    stage.happens(stage.left(*PIECES[:2]))
    assert not stage.ends() and stage.spool.rows == [1]  # kept at once
    sent = stage.link.take(messages.StorePiece)
    assert [(each.digest, each.data) for each in sent] == [(digest(piece), piece) for piece in PIECES[:2]]
    stage.uep.take([messages.PieceStored(digest=digest(PIECES[1]))])
    assert not stage.ends()
    stage.uep.take([messages.PieceStored(digest=digest(PIECES[0]))])
    (ended,) = stage.ends()
    assert (ended.row, ended.code, ended.pieces) == (1, "", tuple(digest(piece) for piece in PIECES[:2]))
    stage.uep.take([messages.ResultsDurable(rows=[1])])
    stage.tasks(2)
    stage.happens(messages.ResultItem(2, "2", "", "", frame(PIECES[0]), 1.0, 2.0))
    assert [item.row for item in stage.ends()] == [2]  # its piece is there
    assert not stage.link.take(messages.StorePiece)


def test_a_link_that_breaks_before_the_pieces_are_stored_repeats_them(stage: DataStage) -> None:
    stage.tasks(1)
    stage.happens(stage.left(*PIECES[:2]))
    stage.uep.take([messages.PieceStored(digest=digest(PIECES[0]))])
    stage.link.take(messages.StorePiece)
    stage.link.disconnect("broken")
    stage.welcome_to_data()
    assert [each.digest for each in stage.link.take(messages.StorePiece)] == [digest(PIECES[1])]
    assert not stage.ends()
    stage.uep.take([messages.PieceStored(digest=digest(PIECES[1]))])
    assert [item.row for item in stage.ends()] == [1]


def test_a_later_process_brings_the_pieces_of_a_spooled_result(stage: DataStage, tmp_path: pathlib.Path) -> None:
    stage.tasks(1)
    stage.happens(stage.left(PIECES[0]))
    stage.spool.close()
    later = DataStage(tmp_path)
    later.spool.recover()
    later.welcome_to_data()
    assert not later.ends()
    assert [each.digest for each in later.link.take(messages.StorePiece)] == [digest(PIECES[0])]
    later.uep.take([messages.PieceStored(digest=digest(PIECES[0]))])
    assert [item.row for item in later.ends()] == [1]


def test_a_result_that_the_relay_refuses_ends_with_its_error(stage: DataStage) -> None:
    stage.tasks(1)
    stage.happens(stage.left(PIECES[0]))
    stage.uep.take([messages.PieceStored(digest=digest(PIECES[0]), code=StorageFull.code, text="It is full.")])
    assert [(item.row, item.code, item.text) for item in stage.ends()] == [(1, StorageFull.code, "It is full.")]
    kept = stage.spool.get(1)
    assert kept is not None and kept.code == StorageFull.code


def test_a_result_without_its_pieces_or_over_the_limit_is_told(stage: DataStage) -> None:
    stage.tasks(1, 2)
    stage.happens(result(1, frame(PIECES[0])))
    (ended,) = stage.ends()
    assert ended.code == DataUnavailable.code and "cannot be read" in ended.text
    stage.welcome_to_data(most=50)
    stage.happens(messages.ResultItem(2, "2", "", "", frame(PIECES[0]), 1.0, 2.0))
    assert [(item.row, item.code) for item in stage.ends() if item.row == 2] == [(2, ResultTooLarge.code)]


def test_workers_are_told_how_large_a_result_may_be(stage: DataStage) -> None:
    assert (stage.data / "limit").read_text() == "10000"
    stage.welcome_to_data(most=0)
    assert not (stage.data / "limit").exists()


# --- the directory ------------------------------------------------------------------------------------------


def test_the_directory_is_bounded_and_keeps_what_tasks_need(tmp_path: pathlib.Path) -> None:
    cache = DataCache(str(tmp_path / "data"), limit_bytes=350, clock=lambda: 4e9)
    for piece in PIECES[:3]:
        cache.put(digest(piece), piece, set)
    assert cache.has(digest(PIECES[0]))  # and is now the youngest
    cache.put(digest(PIECES[3]), PIECES[3], lambda: {digest(PIECES[1])})
    assert [cache.has(digest(piece)) for piece in PIECES[:4]] == [True, True, False, True]


def test_files_of_earlier_processes_are_found_and_left_overs_removed(tmp_path: pathlib.Path) -> None:
    directory = tmp_path / "data"
    DataCache(str(directory)).put(digest(PIECES[0]), PIECES[0], set)
    (directory / f"{digest(PIECES[1]).hex()}.0badcafe").write_bytes(b"half")
    (directory / "limit").write_text("1")
    cache = DataCache(str(directory), clock=lambda: 4e9)
    assert cache.has(digest(PIECES[0])) and not cache.has(digest(PIECES[1]))
    assert sorted(path.name for path in directory.iterdir()) == sorted([digest(PIECES[0]).hex(), "limit"])
    (directory / digest(PIECES[0]).hex()).unlink()
    assert not cache.has(digest(PIECES[0]))


def test_a_young_file_stays(tmp_path: pathlib.Path) -> None:
    cache = DataCache(str(tmp_path / "data"), limit_bytes=150)
    for piece in PIECES[:2]:
        cache.put(digest(piece), piece, set)
    assert cache.has(digest(PIECES[0])) and cache.has(digest(PIECES[1]))
