"""Hundreds of tasks in flight while things die: every task ends once, and none runs twice that must not."""

from __future__ import annotations

import collections
import os
import pathlib
import random
import signal
import time

from mep_sdk.serialize import serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess, account
from tests.support.waiting import until

TASKS = 600
MANY = "engine:\n  type: ProcessPoolEngine\n  max_workers: 4\n"


def note_then_nap(path: str, row: int, seconds: float) -> int:
    import os
    import time

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, b"%d\n" % row)
    os.close(descriptor)
    time.sleep(seconds)
    return row


FUNCTIONS = {"note": serialize_function(note_then_nap)}


class Play:
    """A relay that keeps its side of the contract: it resends tasks that were returned or never confirmed."""

    def __init__(self, relay: FakeRelay, ran: pathlib.Path) -> None:
        self.relay, self.ran = relay, ran
        self.queued = collections.deque(range(1, TASKS + 1))
        self.sent: set[int] = set()
        self.results: dict[int, messages.ResultItem] = {}
        self.started: set[int] = set()

    def task(self, row: int) -> messages.TaskItem:
        arguments = (str(self.ran), row, random.choice((0.0, 0.0, 0.002, 0.02)))
        return messages.TaskItem(row, f"task-{row}", "note", serialize_arguments(arguments, {}))

    def dispatch(self) -> None:
        count = min(self.relay.credit, len(self.queued), 64)
        if count > 0:
            rows = [self.queued.popleft() for _ in range(count)]
            self.sent |= set(rows)
            self.relay.submit(FUNCTIONS, [self.task(row) for row in rows])

    def hear(self, timeout_s: float = 0.05) -> None:
        match self.relay.receive(timeout_s):
            case messages.Results(items=items):
                for item in items:
                    before = self.results.setdefault(item.row, item)
                    assert before == item, "a task ended twice, differently"
                    self.sent.discard(item.row)
                self.relay.send(messages.ResultsDurable(rows=[item.row for item in items]))
            case messages.Returned(rows=rows):
                self.queued.extend(row for row in rows if row not in self.results)
                self.sent -= set(rows)
            case messages.Started(rows=rows):
                self.started |= set(rows)
            case messages.UepHello(held=held) | messages.Join(held=held):
                self.relay.credit = 0
                self.relay.sent_functions.clear()
                self.relay.send(messages.UepWelcome(heartbeat_s=10.0, max_result_bytes=1 << 20))
                away = self.sent - set(held)
                self.queued.extend(sorted(away))
                self.sent -= away

    def turn(self) -> bool:
        """One step; returns whether there is more to come."""
        self.dispatch()
        self.hear()
        return len(self.results) < TASKS

    def runs(self) -> collections.Counter[int]:
        return collections.Counter(int(line) for line in self.ran.read_text().split())


def test_workers_and_fork_server_die(home: pathlib.Path) -> None:
    relay = FakeRelay()
    with UepProcess(relay, home, template=MANY) as uep:
        play = Play(relay, home / "ran")
        kills = collections.Counter[str]()
        descriptors = 0
        killed_at, deadline = time.monotonic(), time.monotonic() + 60
        while play.turn():
            assert time.monotonic() < deadline, (len(play.results), uep.log())
            if time.monotonic() - killed_at > 0.03 and sum(kills.values()) < 25 and len(play.results) > 5:
                killed_at = time.monotonic()
                descriptors = descriptors or count_descriptors(uep)
                server, *workers = uep.children()
                if not workers:
                    continue
                is_server = sum(kills.values()) == 12
                kills["server" if is_server else "worker"] += 1
                os.kill(server if is_server else random.choice(workers), signal.SIGKILL)
        assert kills["server"] == 1
        assert kills["worker"] >= 12
        lost = [item for item in play.results.values() if item.code == "WORKER_LOST"]
        assert {item.code for item in play.results.values()} <= {"", "WORKER_LOST"}
        assert len(lost) <= kills["worker"] + 4 * kills["server"]
        runs = play.runs()
        assert max(runs.values()) == 1
        assert all(runs[row] == 1 for row, item in play.results.items() if not item.code)
        assert count_descriptors(uep) <= descriptors + 8
        wait_for_quiet(uep)
    relay.close()


def count_descriptors(uep: UepProcess) -> int:
    return len(os.listdir(f"/proc/{uep.pid}/fd"))


def wait_for_quiet(uep: UepProcess) -> None:
    uep.signal(signal.SIGTERM)
    assert uep.wait() == 0
    assert not uep.children()
    assert not list((uep.state / "spool").iterdir())


def test_the_relay_comes_and_goes(home: pathlib.Path) -> None:
    relay = FakeRelay()
    with UepProcess(relay, home, template=MANY) as uep:
        play = Play(relay, home / "ran")
        for restarts in range(1, 4):
            until("results", lambda n=restarts: not play.turn() or len(play.results) > n * 120, look_s=0.0)
            play.relay.close()
            time.sleep(0.3)
            play.relay = play.relay.restarted()
        until("the end of all tasks", lambda: not play.turn(), look_s=0.0, details=uep.log)
        assert {item.code for item in play.results.values()} == {""}
        assert set(play.runs().values()) == {1}
        play.relay.close()


def test_the_user_endpoint_is_killed(home: pathlib.Path) -> None:
    """A task with a result isn't run again; a task that had not started is run; those that were running are known."""
    relay = FakeRelay()
    play = Play(relay, home / "ran")
    with UepProcess(relay, home, template=MANY) as first:
        while len(play.results) < 100:
            play.turn()
        first.signal(signal.SIGKILL)
        first.wait()
        while (message := relay.receive(0.1)) is not None:
            if isinstance(message, messages.Started):
                play.started |= set(message.rows)
    ran_before = set(play.runs())
    known = set(play.results)
    with UepProcess(relay, home, template=MANY, uep_id=first.uep_id) as second:
        join = relay.receive()
        assert isinstance(join, messages.Join)
        relay.send(messages.UepWelcome(heartbeat_s=10.0, max_result_bytes=1 << 20))
        held = set(join.held) - known
        lost = {row for row in play.sent - held if row in play.started}
        play.queued.extend(sorted(play.sent - held - lost))
        relay.credit, play.sent = 0, held
        relay.sent_functions.clear()
        deadline = time.monotonic() + 60
        while len(play.results) < TASKS - len(lost):
            assert time.monotonic() < deadline, (len(play.results), second.log())
            play.turn()
    assert len(lost) <= 8
    assert len(lost - ran_before) <= 4, "said to have started; one of each worker may have died before its first line"
    unknown = ran_before - known - held - lost  # begun, and dead before any message could leave
    assert {row for row, count in play.runs().items() if count > 1} == set()
    ended = {row for row, item in play.results.items() if item.code == "USER_ENDPOINT_LOST"}
    assert unknown <= ended
    assert len(ended) <= 8
    assert account().pw_uid == home.stat().st_uid
    relay.close()
