"""Steps that tests of the relay's endpoint link share."""

from __future__ import annotations

from typing import Any

from mep_wire import messages
from tests.support.fake_peer import FakeLink, FakeManager, FakeUep
from tests.support.relay_client import Person


def status_of(person: Person, answer: Any) -> list[str]:
    """Return the statuses of a submission's tasks, in order."""
    ids = [task_id for ids in answer["tasks"].values() for task_id in ids]
    found = person.ok("POST", "/v2/batch_status", {"task_ids": ids})["results"]
    return [found[task_id]["status"] for task_id in ids]


def running_uep(person: Person, lab: FakeManager, function: str, count: int = 1) -> tuple[Any, FakeUep]:
    """Submit tasks and start the user endpoint for them; return the submission's answer and it."""
    answer = person.submit(lab.endpoint_id, function, ["p"] * count)
    return answer, lab.start()


def refused(link: FakeLink) -> messages.Refused:
    """Return the refusal that the relay sends."""
    return link.expect(messages.Refused)
