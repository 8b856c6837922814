"""The socket of `mep why` in the manager: bounded clients, bytes and time, and no client can hold up the others."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mep.boundary.runtime_files import MANAGER_SOCKET
from mep.manager.questions import MAX_CLIENTS, MAX_QUESTION_BYTES, PATIENCE_S, Questions
from mep.root.kernel.unix_socket import listen
from mep_wire.messages import Explained, StoryLine


class Desk:
    """The manager's end, and clients."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory, self.now = directory, 0.0
        self.watched: dict[int, bool] = {}
        self.asked: list[str] = []
        self.answer: int | str = 0
        self.listener = listen(str(directory), MANAGER_SOCKET, socket.SOCK_STREAM)
        self.questions = Questions(self.listener, self.watched.__setitem__, self.watched.__delitem__)
        self.clients: list[socket.socket] = []

    def client(self, said: bytes = b"") -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(10)
        made.connect(str(self.directory / MANAGER_SOCKET))
        made.sendall(said)
        self.clients.append(made)
        return made

    def ask(self, about: str) -> int | str:
        self.asked.append(about)
        return self.answer or len(self.asked)

    def turn(self) -> None:
        self.questions.take(self.now, self.ask)
        self.questions.tick(self.now)

    def close(self) -> None:
        for each in (*self.clients, self.listener):
            each.close()


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def answer_of(client: socket.socket) -> Any:
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return json.loads(data)


def test_the_socket_is_its_owners_alone(desk: Desk) -> None:
    status = os.stat(desk.directory / MANAGER_SOCKET)
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, os.geteuid())
    listen(str(desk.directory), MANAGER_SOCKET).close()  # a restarted manager's takes its place


def test_a_question_goes_to_the_relay_and_its_answer_comes_back(desk: Desk) -> None:
    client = desk.client(b'{"why": "x"}\n')
    desk.turn()
    desk.turn()
    assert desk.asked == ["x"]
    desk.questions.answered(Explained(ref=99))
    desk.questions.answered(Explained(ref=1, uep_id="u", code="C", lines=[StoryLine(1.0, "INFO", "t")]))
    said = answer_of(client)
    assert (said["uep_id"], said["code"], said["lines"]) == ("u", "C", [{"at": 1.0, "level": "INFO", "text": "t"}])
    assert desk.watched == {desk.listener.fileno(): False}


def test_a_large_answer_leaves_as_fast_as_it_is_read(desk: Desk) -> None:
    client = desk.client(b'{"why": "x"}\n')
    desk.turn()
    desk.turn()
    desk.questions.answered(Explained(ref=1, lines=[StoryLine(1.0, "INFO", "t" * 1000)] * 2000))
    assert True in desk.watched.values(), "the rest waits for the client"
    data = b""
    while len(data) < 2_000_000:
        data += client.recv(65536)
        desk.turn()
    while chunk := client.recv(65536):
        data += chunk
    assert len(json.loads(data)["lines"]) == 2000


def test_why_the_relay_cannot_be_asked_is_said(desk: Desk) -> None:
    desk.answer = "the relay's link is down: refused"
    client = desk.client(b'{"why": "x"}\n')
    desk.turn()
    desk.turn()
    assert answer_of(client) == {"problem": "the relay's link is down: refused"}


@pytest.mark.parametrize("said", [b"\n", b"[]\n", b'{"why": 1}\n', b"\xff\n", b'{"how": "x"}\n', b"1\n"])
def test_what_is_no_question_is_said_to_be_none(desk: Desk, said: bytes) -> None:
    client = desk.client(said)
    desk.turn()
    desk.turn()
    assert answer_of(client) == {"problem": "not a question"}
    assert not desk.asked


def test_clients_that_say_too_much_or_leave_are_dropped(desk: Desk) -> None:
    loud, gone = desk.client(b"x" * (3 * MAX_QUESTION_BYTES)), desk.client()
    gone.close()
    for _ in range(4):
        desk.turn()
    assert len(desk.watched) == 1
    with pytest.raises((ConnectionError, ValueError)):
        answer_of(loud)


def test_silent_clients_end_and_never_outnumber_their_bound(desk: Desk) -> None:
    for _ in range(MAX_CLIENTS):
        desk.client()
    desk.turn()
    last = desk.client(b'{"why": "x"}\n')
    desk.turn()
    assert len(desk.watched) == 1 + MAX_CLIENTS
    assert not desk.asked
    desk.now += PATIENCE_S
    assert desk.questions.next_at() <= desk.now
    desk.turn()
    desk.turn()
    desk.turn()
    assert desk.asked == ["x"]
    desk.now += PATIENCE_S
    desk.turn()
    assert answer_of(last) == {"problem": "the relay has not answered in time"}
