"""The memory that carries a running task's output from its worker to the engine."""

from __future__ import annotations

import os
import tempfile

import pytest

from user_endpoint.workers import output_ring
from user_endpoint.workers.output_ring import WINDOW, RingReader, RingWriter, open_ring


@pytest.fixture
def ends() -> tuple[RingWriter, RingReader]:
    writer, descriptor = output_ring.create()
    reader = open_ring(descriptor)
    assert reader is not None
    return writer, reader


def test_each_piece_is_read_once(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    write = writer.begin(7)
    write(0, b"one\n", 0)
    write(1, b"beware\n", 0)
    assert reader.read(7, WINDOW) == [(0, 0, b"one\n"), (1, 0, b"beware\n")]
    assert reader.read(7, WINDOW) == []
    write(0, b"two\n", 0)
    assert reader.read(7, WINDOW) == [(0, 4, b"two\n")]


def test_it_is_one_tasks_at_a_time(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    writer.begin(7)(0, b"one\n", 0)
    assert reader.read(8, WINDOW) == []
    writer.begin(8)(0, b"of eight\n", 0)
    assert reader.read(7, WINDOW) == []
    assert reader.read(8, WINDOW) == [(0, 0, b"of eight\n")]


def test_of_more_than_fits_the_end_is_read_with_its_position(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    write = writer.begin(7)
    text = b"".join(b"%09d\n" % number for number in range(50_000))
    for start in range(0, len(text), 999):
        write(0, text[start : start + 999], 0)
    assert reader.read(7, WINDOW) == [(0, len(text) - WINDOW, text[-WINDOW:])]
    write(0, text, 0)
    assert reader.read(7, 10) == [(0, 2 * len(text) - 10, text[-10:])]


def test_skipped_bytes_count(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    writer.begin(7)(0, b"end\n", 1000)
    assert reader.read(7, WINDOW) == [(0, 1000, b"end\n")]


def test_a_piece_that_is_overwritten_while_it_is_read_is_left_out(
    ends: tuple[RingWriter, RingReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = ends
    write, read = writer.begin(7), reader._bytes
    write(0, b"a" * WINDOW, 0)

    def meanwhile(stream: int, start: int, count: int) -> bytes:
        data = read(stream, start, count)
        write(0, b"b" * 100, 0)
        return data

    monkeypatch.setattr(reader, "_bytes", meanwhile)
    assert reader.read(7, WINDOW) == [(0, 100, b"a" * (WINDOW - 100))]


def test_a_forked_child_writes_nothing(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    write = writer.begin(7)
    if (pid := os.fork()) == 0:
        write(0, b"of the child\n", 0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert reader.read(7, WINDOW) == []


def test_another_file_is_no_ring() -> None:
    read, write = os.pipe()
    with tempfile.TemporaryFile() as file:
        for descriptor in (read, os.dup(file.fileno()), os.memfd_create("small")):
            assert open_ring(descriptor) is None
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
    os.close(write)


def test_a_ring_with_nonsense_in_it_is_read_without_harm(ends: tuple[RingWriter, RingReader]) -> None:
    writer, reader = ends
    writer.begin(7)(0, b"one\n", 0)
    most = 2**63 - 1
    for header in ((7, -5, 2**62, -9, 5), (7, most, -most, 0, most), (-1, 3, 3, 0, 0), (7, most, most, -most, 0)):
        output_ring._HEADER.pack_into(writer._memory, 0, *header)
        for _, _, data in reader.read(7, WINDOW):
            assert len(data) <= WINDOW
