"""A task that was sent to a process that died may have begun: nothing that is said of it says that it had not."""

from __future__ import annotations

import time
from typing import Any

from mep_wire import messages
from tests.support.fake_peer import FakeManager
from tests.support.relay_client import Person
from tests.support.relay_steps import status_of
from tests.support.waiting import until


def end_of(alice: Person, answer: Any) -> tuple[str, str]:
    """Wait for the end of a submission's one task; return its code and the text that the person reads."""
    ((task_id,),) = answer["tasks"].values()
    until("the task's end", lambda: "completion_t" in alice.task(task_id))
    found = alice.task(task_id)
    return found["code"], str(found)


def test_a_start_that_fails_says_not_begun_only_of_what_was_not_sent(
    alice: Person, lab: FakeManager, function: str
) -> None:
    sent = alice.submit(lab.endpoint_id, function, ["p"])
    uep = lab.start()
    uep.credit(1)
    uep.take(1)  # its worker has begun it, and the report is lost with the process
    waits = alice.submit(lab.endpoint_id, function, ["p"])
    uep.close()
    lab.ended(uep.uep_id)
    request, _ = lab.take_start()
    lab.answer(request.uep_id, "refused", "START_FAILED", "The site could not start your process.")
    assert end_of(alice, waits)[0] == "START_FAILED"
    code, text = end_of(alice, sent)
    assert code == "USER_ENDPOINT_LOST"
    assert "not known whether it had begun" in text


def test_the_next_process_is_asked_what_became_of_it(alice: Person, lab: FakeManager, function: str) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"])
    uep = lab.start()
    uep.credit(1)
    (task,) = uep.take(1)
    uep.close()
    lab.ended(uep.uep_id)
    following = lab.start()
    following.credit(1)
    assert following.take(1) == [task]  # its workers' journals say whether this attempt had begun
    following.send(messages.Started(rows=[task.row]))
    until("tasks that run", lambda: status_of(alice, answer) == ["running"])
    following.finish([task])
    assert status_of(alice, answer) == ["success"]


def test_a_deadline_says_not_begun_only_of_what_a_site_in_touch_has(
    alice: Person, lab: FakeManager, function: str
) -> None:
    answer = alice.submit(lab.endpoint_id, function, ["p"], deadline=time.time() + DEADLINE_S)
    uep = lab.start()
    uep.credit(1)
    uep.take(1)  # its worker has begun it, and the report is lost with the process
    uep.close()
    lab.ended(uep.uep_id)
    code, text = end_of(alice, answer)
    assert code == "TASK_EXPIRED"
    assert "not known whether it had begun" in text
    other = alice.submit(lab.endpoint_id, function, ["p"], deadline=time.time() + DEADLINE_S)
    following = lab.start()
    following.credit(1)
    following.take(1)
    assert "not reported yet that it began" in end_of(alice, other)[1]


DEADLINE_S = 3.0
