"""A late message about an ended process doesn't affect its successor: a real relay and a real endpoint."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from mep_wire.errors import TaskNotFound
from tests.support.link_proxy import LinkProxy
from tests.support.waiting import until

RESULT_S = 60
NAP_S = 6.0


def nap(seconds: float) -> str:

    time.sleep(seconds)
    return "done"


def runs(client: Any, future: Any) -> bool:
    try:
        return bool(client.get_task(future.task_id)["status"] == "running")
    except TaskNotFound:
        return False  # not accepted yet


def test_the_end_of_a_user_endpoint_told_again_leaves_the_next_one_alone(own_place: Any) -> None:
    endpoint = own_place.endpoint
    registration = own_place.site.root / "var" / endpoint.name / "registration.json"
    with LinkProxy.for_endpoint(registration) as proxy:
        endpoint.start()
        with own_place.executor(own_place.anybody) as executor:
            assert executor.submit(pow, 2, 2).result(timeout=RESULT_S) == 4
            ((uep_id, killed),) = own_place.new_pids({}).items()
            os.kill(killed, signal.SIGKILL)
            futures = [executor.submit(nap, NAP_S) for _ in range(2)]
            client = own_place.client(own_place.anybody)
            until("tasks that run in the next process", lambda: all(runs(client, future) for future in futures))
            successor = own_place.new_pids({uep_id: killed})[uep_id]
            # The manager has heard no Pong since it reported the end, and reports it again on its next link.
            assert proxy.cut() >= 2
            until("link", lambda: endpoint.log.read_text().count("connected") >= 2)
            # The tasks run for longer than the relay waits for last results before it believes in an end.
            assert [future.result(timeout=RESULT_S) for future in futures] == ["done", "done"]
            assert own_place.pids() == {uep_id: successor}
