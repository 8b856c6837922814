"""An endpoint that is deleted while its user endpoints are away: every task of it still ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mep_wire import messages
from tests.support.fake_peer import FakeManager
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.relay_steps import running_uep, status_of
from tests.support.waiting import until


class HastyRelay(RelayProcess):
    """A relay that waits half a second, and not 35, for a user endpoint of a deleted endpoint to come back."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "from relay.dispatch import dispatcher as d, process_loss; process_loss.LINK_DEAD_S = 0.5;"
        return [*python, f"{patch} d.LINK_DEAD_S = 0.5; {code}", *words, "--state", str(self.state)]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[HastyRelay]:
    with HastyRelay(tmp_path) as running:
        yield running


@pytest.fixture
def alice(relay: RelayProcess) -> Person:
    return Person(relay, "alice")


def test_tasks_of_a_user_endpoint_that_is_away_end(alice: Person, lab: FakeManager) -> None:
    answer, uep = running_uep(alice, lab, alice.function(), count=3)
    uep.credit(2)
    started, _ = uep.take(2)
    uep.send(messages.Started(rows=[started.row]))
    until("a task that runs", lambda: "running" in status_of(alice, answer))
    uep.close()
    lab.close()
    alice.ok("DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"] * 3)


def test_one_that_comes_back_in_time_still_hands_its_results_over(alice: Person, lab: FakeManager) -> None:
    answer, uep = running_uep(alice, lab, alice.function())
    uep.credit(1)
    tasks = uep.take(1)
    lab.close()
    alice.ok("DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    uep.close()
    uep.connect()
    uep.hello([tasks[0].row])
    uep.finish(tasks)
    assert status_of(alice, answer) == ["success"]


def test_what_a_dead_process_had_started_ends(alice: Person, lab: FakeManager) -> None:
    answer, uep = running_uep(alice, lab, alice.function())
    uep.credit(1)
    (task,) = uep.take(1)
    uep.send(messages.Started(rows=[task.row]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"])
    uep.close()
    lab.ended(uep.uep_id)
    lab.take_start()  # the next process would be asked for the result; none comes
    alice.ok("DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"])


def test_a_relay_killed_after_the_deletion_ends_them_at_its_next_start(
    relay: HastyRelay, alice: Person, lab: FakeManager
) -> None:
    answer, uep = running_uep(alice, lab, alice.function())
    uep.credit(1)
    (task,) = uep.take(1)
    uep.send(messages.Started(rows=[task.row]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"])
    alice.ok("DELETE", f"/v2/endpoints/{lab.endpoint_id}")
    relay.kill()
    uep.close()
    lab.close()
    relay.start()
    until("tasks that have ended", lambda: status_of(alice, answer) == ["failed"])
