"""The spool: nothing unconfirmed is lost, with real files and a real SIGKILL."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mep_wire.messages import ResultItem
from user_endpoint import result_spool as spool_module
from user_endpoint.result_spool import Spool, encode_record, read_records


def item(row: int, payload: bytes = b"value") -> ResultItem:
    return ResultItem(row, f"task-{row}", "", "", payload, 1.0, 2.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rows_found(directory: pathlib.Path) -> list[int]:
    again = Spool(str(directory))
    again.recover()
    found = [result.row for result in again.unconfirmed()]
    again.close()
    return found


def test_unconfirmed_results_are_found_by_the_next_process(tmp_path: pathlib.Path) -> None:
    first = Spool(str(tmp_path))
    first.add([item(1), item(2), item(3)])
    first.durable([2])
    again = Spool(str(tmp_path))
    assert again.recover() == 3  # confirmations are not written down: the relay confirms a repeat
    assert list(again.unconfirmed()) == [item(1), item(2), item(3)]
    assert again.get(2) == item(2)
    assert again.get(4) is None
    again.durable([1, 2, 3])
    again.close()
    assert not list(tmp_path.iterdir())


def test_results_survive_sigkill(tmp_path: pathlib.Path) -> None:
    program = (
        "import sys, os, signal\n"
        "from user_endpoint.result_spool import Spool\n"
        "from mep_wire.messages import ResultItem\n"
        "spool = Spool(sys.argv[1])\n"
        "for row in range(500):\n"
        "    spool.add([ResultItem(row, str(row), '', '', b'x' * row)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert rows_found(tmp_path) == list(range(500))


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 30])
def test_a_torn_last_record_costs_only_itself(tmp_path: pathlib.Path, cut: int) -> None:
    spool = Spool(str(tmp_path))
    spool.add([item(1), item(2)])
    (segment,) = tmp_path.iterdir()
    os.truncate(segment, segment.stat().st_size - cut)
    assert rows_found(tmp_path) == [1]
    assert rows_found(tmp_path) == [1]  # and the file is sound afterwards


def test_a_flipped_bit_is_noticed_and_costs_one_record() -> None:
    data = bytearray(encode_record(item(1)) + encode_record(item(2)) + encode_record(item(3)))
    data[len(encode_record(item(1))) + 12] ^= 1
    records, end = read_records(bytes(data))
    assert [result.row for _, result in records] == [1, 3]
    assert end == len(data)


def test_zeros_where_records_were(tmp_path: pathlib.Path) -> None:
    record = encode_record(item(1))
    assert read_records(record + bytes(100_000)) == ([(0, item(1))], len(record))


def test_a_disk_that_tells_late_that_it_has_dropped_results(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, clock, said = os.fdatasync, Clock(), list[str]()

    def drops(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size)
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "fdatasync", drops)
    spool = Spool(str(tmp_path), report=said.append, clock=clock)
    spool.add([item(1), item(2)])
    clock.now += spool_module.SYNC_AFTER_S
    spool.tick()
    assert len(said) == 1
    assert list(spool.unconfirmed()) == [item(1), item(2)]
    monkeypatch.setattr(os, "fdatasync", real)
    clock.now += spool_module.RETRY_S
    spool.tick()
    spool.durable([1])
    spool.close()
    assert rows_found(tmp_path) == [1, 2]  # confirmations are not written down


def test_a_record_that_cannot_be_read_back_is_said_and_ends_nothing(tmp_path: pathlib.Path) -> None:
    Spool(str(tmp_path)).add([item(1), item(2)])
    said = list[str]()
    spool = Spool(str(tmp_path), report=said.append)
    spool.recover()
    (segment,) = tmp_path.iterdir()
    segment.write_bytes(bytes(segment.stat().st_size))
    assert not list(spool.unconfirmed())
    assert spool.get(1) is None
    assert len(said) == 2


def test_confirmed_segments_go_while_others_stay(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 1000)
    spool = Spool(str(tmp_path))
    for row in range(40):
        spool.add([item(row, b"x" * 100)])
    before = len(list(tmp_path.iterdir()))
    assert before > 3
    spool.durable(list(range(1, 40)))
    assert len(list(tmp_path.iterdir())) == 2  # that of row 0, and the small one that is written on
    assert list(spool.unconfirmed()) == [item(0, b"x" * 100)]
    spool.close()
    assert 0 in rows_found(tmp_path)  # and those beside it in its segment, which the relay confirms again


def test_a_steady_stream_does_not_grow(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 10_000)
    monkeypatch.setattr(spool_module, "_WORTH_REMOVING_BYTES", 5_000)
    spool = Spool(str(tmp_path))
    for row in range(2000):
        spool.add([item(row, b"x" * 100)])
        spool.durable([row - 1])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 30_000


def test_forced_to_disk_only_when_unconfirmed_for_a_while(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    clock = Clock()
    spool = Spool(str(tmp_path), clock=clock)
    spool.add([item(1)])
    spool.durable([1])
    assert spool.tick_at is None
    spool.add([item(2)])
    spool.tick()
    assert not synced
    clock.now += spool_module.SYNC_AFTER_S
    spool.tick()
    assert len(synced) == 1
    assert spool.tick_at is None


def test_a_disk_that_refuses_keeps_results_in_memory_and_says_so_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, clock, said = os.pwrite, Clock(), list[str]()

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if offset > 150:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:40], offset)  # and only a part of it, as a filling disk does

    monkeypatch.setattr(os, "pwrite", full)
    spool = Spool(str(tmp_path), report=said.append, clock=clock, memory_limit_bytes=20)
    for row in range(8):
        spool.add([item(row)])
    assert len(said) == 1
    assert "No space left" in said[0]
    assert spool.is_full
    assert [result.row for result in spool.unconfirmed()] == list(range(8))

    monkeypatch.setattr(os, "pwrite", real)
    clock.now += spool_module.RETRY_S
    spool.tick()
    assert not spool.is_full
    spool.close()
    assert sorted(rows_found(tmp_path)) == list(range(8))


def test_full_by_bytes_on_disk(tmp_path: pathlib.Path) -> None:
    spool = Spool(str(tmp_path), limit_bytes=1000)
    spool.add([item(1, b"x" * 2000)])
    assert spool.is_full
    spool.durable([1])
    assert not spool.is_full


def test_a_link_in_place_of_a_segment_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "0.seg").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        Spool(str(tmp_path)).recover()
