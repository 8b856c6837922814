"""One task's way through the logs of a real site: from the person's id of it to the start that it caused."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sitekit.daemon import BIN

from mep.cli.log_lines import LogLine, read_line
from mep_wire.errors import MepError
from tests.support.campus import Campus, make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90


@contextmanager
def traced(config: str = "") -> Iterator[Campus]:
    with make_campus("multi", "traced") as campus:
        campus.endpoint.add_config(f"log_path: {campus.endpoint.log}\n{config}")
        file = campus.site.relay.state / "mep-relay.toml"
        file.write_text('log_format = "json"\n')
        shutil.chown(file, "mep-relay", "mep-relay")
        campus.site.relay.stop()
        relay_log(campus).write_text("")
        campus.site.relay.start()
        mep(campus, "start", "traced", "--detach")  # so its log is a file, which `mep logs` reads
        try:
            until("the link is up", campus.endpoint.is_up)
            yield campus
        finally:
            mep(campus, "stop", "traced")


@pytest.fixture
def place() -> Iterator[Campus]:
    with traced() as campus:
        yield campus


@pytest.fixture
def json_place() -> Iterator[Campus]:
    with traced("log_format: json\ndebug: true\n") as campus:
        yield campus


def relay_log(campus: Campus) -> Any:
    return campus.site.root / "logs" / "relay.log"


def unserializable() -> object:
    import threading

    return threading.Lock()


def lines_of(log: str) -> list[LogLine]:
    """Return the lines of a log that are in one of our formats."""
    return [line for text in log.splitlines() if (line := read_line(text)) is not None]


def asked_for(campus: Campus, task: str | None) -> str:
    """Return the correlation id of the start that a task caused, as the relay logged it."""
    lines = [json.loads(line) for line in relay_log(campus).read_text().splitlines()]
    (asked,) = [line["fields"] for line in lines if line["text"] == "start requested"]
    assert asked["task"] == task
    return str(asked["correlation_id"])


def uep_log(campus: Campus) -> str:
    (file,) = campus.accounts["alice"].home.glob(".mep/uep/*/endpoint.log")
    return str(file.read_text())


def test_a_tasks_id_leads_through_every_log(place: Campus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mep_sdk")
    with place.executor("alice") as executor:
        future = executor.submit(os.getenv, "GC_TASK_UUID")
        assert future.result(timeout=RESULT_S) == future.task_id  # the worker's own environment
    assert any(str(future.task_id) in record.getMessage() for record in caplog.records)

    start = f"correlation_id={asked_for(place, future.task_id)}"

    def named() -> set[str]:
        return {line.process for line in lines_of(place.log()) if f" {start}" in line.text}

    until("the lines", lambda: {"monitor", "mapper", "keeper"} <= named())
    assert start in uep_log(place)


def test_in_json_it_leads_through_every_process(json_place: Campus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mep_sdk")
    with json_place.executor("alice") as executor:
        future = executor.submit(os.getenv, "GC_TASK_UUID")
        assert future.result(timeout=RESULT_S) == future.task_id
        failing = executor.submit(unserializable)
        with pytest.raises(MepError):
            failing.result(timeout=RESULT_S)
    task = str(future.task_id)
    assert any(task in record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG)
    start = asked_for(json_place, task)

    def named(log: str) -> set[str]:
        found = [json.loads(line) for line in log.splitlines()]
        return {str(line["process"]) for line in found if line.get("correlation_id") == start}

    until("its line of each", lambda: {"monitor", "manager", "mapper", "keeper"} <= named(json_place.log()))
    assert named(uep_log(json_place)) == {"mep-uep"}

    for about in (start, str(failing.task_id)):
        story = json.loads(mep(json_place, "why", about, "traced", "--json"))
        assert story["correlation_id"] == start
        sources = {line["source"] for line in story["story"]}
        assert {"relay", "monitor", "manager", "mapper", "keeper", "user endpoint"} <= sources
    shown = mep(json_place, "logs", "traced", json_place.accounts["alice"].name).splitlines()
    assert any(f" correlation_id={start}" in line and "INFO keeper[" in line for line in shown)
    assert any("mep-uep[" in line and "joined the relay" in line for line in shown)
    assert not any("{" in line.partition(": ")[0] for line in shown)


def test_a_log_of_both_formats_is_read_to_its_end(place: Campus) -> None:
    with place.executor("alice") as executor:
        future = executor.submit(os.getpid)
        assert future.result(timeout=RESULT_S) > 0
        start = asked_for(place, str(future.task_id))
        place.endpoint.add_config("log_format: json\n")
        mep(place, "reload", "traced")
        last = until("a line of JSON", lambda: [line for line in place.log().splitlines() if line.startswith("{")])
        assert json.loads(last[0])["event"] == "configuration reloaded"
        config = place.endpoint.config_dir / "config.yaml"
        good = config.read_text()
        config.write_text(good.replace("log_format: json", "log_format: both"))
        mep(place, "reload", "traced", code=None)
        config.write_text(good)
        said = [json.loads(line) for line in place.log().splitlines() if "must be text or json" in line]
        assert "resolver" in {line["process"] for line in said}, "its own words are JSON too"
        sources = {line["source"] for line in json.loads(mep(place, "why", start, "traced", "--json"))["story"]}
        assert {"monitor", "mapper", "keeper", "user endpoint"} <= sources
        shown = mep(place, "logs", "traced").splitlines()
        assert all(read_line(line) is not None and not line.startswith("{") for line in shown)


def mep(campus: Campus, *words: str, code: int | None = 0) -> str:
    """Run `mep`, and return what it prints. `code` is the exit code that it must have; None: any but 0."""
    done = subprocess.run(
        [str(BIN / "mep"), *words], env=campus.site.env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == code if code is not None else done.returncode, done.stderr
    return done.stdout
