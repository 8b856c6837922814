"""Nothing that a commit waits for stops the relay's event loop, and the relay says which wait is long."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mep_wire import codec, messages
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import running_uep
from tests.support.waiting import until


@contextmanager
def locked(relay: RelayProcess) -> Iterator[None]:
    """Hold the lock of the relay's database, as a backup or an administrator's shell does."""
    other = sqlite3.connect(relay.state / "relay.db", isolation_level=None, timeout=60)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def test_another_holder_of_the_databases_lock_holds_up_writes_alone(
    relay: RelayProcess, alice: Person, lab: FakeManager, function: str
) -> None:
    """The lock is held until everything else was answered: a loop that waits for it would never answer."""
    _, uep = running_uep(alice, lab, function)
    uep.credit(10)
    uep.take(1)
    answers: list[Any] = []
    with locked(relay):
        submission = threading.Thread(target=lambda: answers.append(alice.submit(lab.endpoint_id, function, ["p"])))
        submission.start()
        until("the lock in the log", lambda: "another process holds the database's lock" in relay.log.read_text())
        assert alice.ok("GET", f"/v2/endpoints/{lab.endpoint_id}/status")["status"] == "online"
        uep.send_raw(codec.encode(messages.Ping(sent_at=1.0)))
        assert uep.socket.poll(10_000), "the link is not answered"
        assert not answers
    submission.join(60)
    assert len(answers) == 1
    assert "changes waited" in relay.log.read_text()
