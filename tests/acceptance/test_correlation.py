"""One task's way through the logs of a real site: from the person's id of it to the start that it caused."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90


@pytest.fixture
def place() -> Iterator[Campus]:
    with make_campus("multi", "traced") as campus:
        file = campus.site.relay.state / "mep-relay.toml"
        file.write_text('log_format = "json"\n')
        shutil.chown(file, "mep-relay", "mep-relay")
        campus.site.relay.stop()
        relay_log(campus).write_text("")
        campus.site.relay.start()
        campus.endpoint.start()
        yield campus


def relay_log(campus: Campus) -> Any:
    return campus.site.root / "logs" / "relay.log"


def _process(line: str) -> str:
    """Return the process that wrote a line of the endpoint's log."""
    return line.split(" ")[2].partition("[")[0]


def test_a_tasks_id_leads_through_every_log(place: Campus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mep_sdk")
    with place.executor("alice") as executor:
        future = executor.submit(os.getenv, "GC_TASK_UUID")
        assert future.result(timeout=RESULT_S) == future.task_id  # the worker's own environment
    assert any(str(future.task_id) in record.getMessage() for record in caplog.records)

    lines = [json.loads(line) for line in relay_log(place).read_text().splitlines()]
    (asked,) = [line["fields"] for line in lines if line["text"] == "start requested"]
    assert asked["task"] == future.task_id
    start = f"correlation_id={asked['correlation_id']}"

    def named() -> set[str]:
        return {_process(line) for line in place.log().splitlines() if start in line}

    until("both lines", lambda: {"monitor", "mapper"} <= named())
    home = place.accounts["alice"].home
    logs = "".join(file.read_text() for file in home.glob(".mep/uep/*/*.log"))
    assert start in logs
