"""A task that waits says why, at a real site: to get_task, to the batch status, to the future, and once to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import TaskNotFound
from tests.support.campus import Campus, make_campus
from tests.support.clocks import Clock
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90


@pytest.fixture
def place() -> Iterator[Campus]:
    with make_campus("multi", "site") as made:
        made.endpoint.add_config("caps:\n  max_user_endpoints_per_user: 1\n")
        made.endpoint.start()
        yield made


def wait_of(executor: Any, future: Any, code: str) -> dict[str, Any]:
    """Return the status of a task once it waits for this."""
    told: dict[str, Any] = {}

    def waits() -> bool:
        told.update(executor.client.get_task(future.task_id))
        return told.get("code") == code

    until(f"it waits for {code}", waits, RESULT_S, unready=(TaskNotFound,), details=lambda: told)
    assert told["reason"] and told["waiting_since"] <= time.time() + 1
    return told


def hold(path: str) -> str:
    import os
    import time

    open(path + ".begun", "w").close()
    deadline = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    return path


def test_an_endpoint_that_is_away(place: Campus, caplog: pytest.LogCaptureFixture) -> None:
    with place.executor("alice") as executor:
        executor.submit(pow, 2, 3).result(timeout=RESULT_S)
        place.endpoint.stop()
        before = time.time()
        with caplog.at_level(logging.INFO, "mep_sdk"):
            future = executor.submit(pow, 2, 4)
            told = wait_of(executor, future, "ENDPOINT_OFFLINE")
            assert "no link to the relay since" in told["reason"]
            assert told["waiting_since"] <= before + 60
            until("the future says so", lambda: future.reason_code == "ENDPOINT_OFFLINE", RESULT_S)
            assert future.reason == told["reason"]
            assert future.waiting_since is not None
            batch = executor.client.get_batch_result([future.task_id])[future.task_id]
            assert batch["code"] == "ENDPOINT_OFFLINE"
            place.endpoint.start()
            assert future.result(timeout=RESULT_S) == 16
        assert future.reason == "" == future.reason_code
    said = [record for record in caplog.records if "offline" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"], "once"


def test_a_persons_own_cap_ends_the_idle_one_and_waits_for_the_busy_one(place: Campus) -> None:
    flag = Path(place.accounts["alice"].home, "flag")
    with place.executor("alice", project="one") as one, place.executor("alice", project="two") as two:
        assert one.submit(pow, 2, 3).result(timeout=RESULT_S) == 8
        (first,) = place.pids()
        assert two.submit(pow, 2, 4).result(timeout=RESULT_S) == 16, "the idle one has ended for it"
        (second,) = place.pids()
        assert second != first
        held = two.submit(hold, str(flag))
        until("it runs", lambda: Path(f"{flag}.begun").exists(), RESULT_S)
        waits = one.submit(pow, 2, 5)
        assert "as many user endpoints as this site" in wait_of(one, waits, "PERSON_LIMIT")["reason"]
        assert not held.done(), "one in use is left alone"
        flag.touch()
        assert held.result(timeout=RESULT_S) == str(flag)
        assert waits.result(timeout=RESULT_S) == 32


def test_clocks_that_differ_are_told_on_both_sides(place: Campus) -> None:
    place.endpoint.stop()
    place.site.relay.stop()
    clock = Clock(place.site.root, "relay")
    clock.make()
    clock.step(-600)
    place.site.relay.env = clock.env
    place.site.start_relay()
    place.endpoint.start()
    with place.executor("bob") as executor:
        future = executor.submit(pow, 2, 3)
        told = wait_of(executor, future, "START_REQUEST_STALE")
        assert "clock" in told["reason"].lower()
        detail = str(place.endpoint.status()["link_detail"])
        assert "the clocks differ by 600 s" in detail
        said = next(line for line in place.site.logs().splitlines() if "its clock is ahead of the relay's" in line)
        assert "seconds=600" in said
        line = next(line for line in place.log().splitlines() if "the clocks of relay and endpoint differ" in line)
        assert " ERROR " in line, "starts are refused for it"
        clock.step(0)
        assert future.result(timeout=RESULT_S) == 8
