"""Nothing that a commit waits for stops the relay's event loop, and the relay says which wait is long."""

from __future__ import annotations

import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

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


def figure(relay: RelayProcess, name: str) -> float:
    asked = urllib.request.Request(f"{relay.url}/metrics", headers={"authorization": f"Bearer {_token(relay)}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.read().decode().splitlines()
    (found,) = [line for line in lines if line.startswith(f"mep_relay_{name} ")]
    return float(found.rpartition(" ")[2])


@cache
def _token(relay: RelayProcess) -> str:
    return relay.add_user("prometheus@example.edu")


def test_while_the_database_is_locked_the_relay_is_alive_and_not_ready(relay: RelayProcess) -> None:
    assert relay.request("GET", "/healthz") == (200, {"status": "ok"})
    assert relay.request("GET", "/readyz") == (200, {"status": "ok"})
    with locked(relay):
        until("the relay not ready", lambda: relay.request("GET", "/readyz")[1].get("code") == "RELAY_UNAVAILABLE")
        assert relay.request("GET", "/healthz") == (200, {"status": "ok"})
    until("the relay ready", lambda: relay.request("GET", "/readyz")[0] == 200)
    assert figure(relay, "store_longest_wait_seconds") > 1.0


def test_a_loop_that_stands_still_is_seen_in_the_figures_and_named_in_the_log(tmp_path: Path) -> None:
    """The look-up of endpoints takes a second, as on a file system that hangs."""
    with SlowRelay(tmp_path) as relay:
        token = relay.add_user("alice@example.edu")
        before = figure(relay, "loop_stalls_total")
        assert relay.request("GET", "/v2/endpoints", token)[0] == 200
        until("the stall counted", lambda: figure(relay, "loop_stalls_total") > before)
        assert figure(relay, "loop_lag_seconds") > 0.5
        until("the stall logged", lambda: "event loop: stood still" in relay.log.read_text())
        assert "endpoints:" in relay.log.read_text()


class SlowRelay(RelayProcess):
    """See the test."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = (
            "import threading, relay.store.sqlite as s; "
            "s.SqliteStore.endpoints = lambda *_: threading.Event().wait(1.2) and [] or []; "
        )
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


@pytest.mark.parametrize("header", ["x-forwarded-for", "accept"])
def test_figures_are_for_people_with_a_token(relay: RelayProcess, header: str, alice: Person) -> None:
    """Behind a proxy that adds no header, a stranger's request is just like one of this host's."""
    asked = urllib.request.Request(f"{relay.url}/metrics", headers={header: "192.0.2.7"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(asked, timeout=60)
    asked.add_header("authorization", f"Bearer {alice.token}")
    with urllib.request.urlopen(asked, timeout=60) as answer:
        assert b"mep_relay_store_checkpoints_total" in answer.read()


def test_checkpoints_are_among_the_figures(relay: RelayProcess, alice: Person) -> None:
    before = figure(relay, "store_checkpoints_total")
    alice.function()
    until("a checkpoint", lambda: figure(relay, "store_checkpoints_total") > before)
    assert figure(relay, "store_log_bytes") > 0
    assert figure(relay, "store_failures_total") == 0
