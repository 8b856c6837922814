"""`mep why` at a real site: what a person quotes leads to the whole story, and to the cause first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sitekit.daemon import BIN
from sitekit.endpoint import SCHEMA

from mep_wire.errors import MepError
from tests.support.campus import SCHEMA_VALUE, TEMPLATE_TEXT, Campus, make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90
TEMPLATE = TEMPLATE_TEXT.replace(
    "    init_blocks: 1\n", '    init_blocks: 1\n    worker_init: {{ init | default("") }}\n'
)
PROPERTIES = {**SCHEMA_VALUE["properties"], "init": {"type": "string"}}  # type: ignore[dict-item]
SAID = "no such module: cuda/99"


@pytest.fixture(scope="module")
def place() -> Iterator[Campus]:
    with make_campus("multi", "site", TEMPLATE) as made:
        made.endpoint.write(SCHEMA, {**SCHEMA_VALUE, "properties": PROPERTIES})
        made.endpoint.add_config(f"log_path: {made.endpoint.log}\n")
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def kill_worker() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def begun_twice(place: Campus) -> tuple[str, str]:
    """Return the ids of two tasks that succeeded, in two processes of one user endpoint."""
    tasks = []
    for number in (1, 2):
        with place.executor("alice", project="fine") as executor:
            future = executor.submit(abs, -number)
            assert future.result(RESULT_S) == number
            tasks.append(str(future.task_id))
        words = ["stop", "site", "--user", place.accounts["alice"].name]
        subprocess.run([str(BIN / "mep"), *words], env=place.site.env, check=True)
    return tasks[0], tasks[1]


def test_a_task_that_succeeded_has_the_whole_story_of_its_process(place: Campus) -> None:
    starts = []
    for task in begun_twice(place):
        story = story_of(place, task)
        assert (story["code"], story["status"]) == ("", "success")
        assert {"relay", "monitor", "user endpoint"} <= {line["source"] for line in story["story"]}
        own = [line["text"] for line in story["story"] if line["source"] == "user endpoint"]
        assert [text.partition(" endpoint=")[0].partition(" held=")[0] for text in own[:2]] == [
            "starting",
            "joined the relay",
        ]
        (start,) = [line["text"] for line in story["story"] if line["text"].startswith("audit: start ")]
        assert story["correlation_id"] in start
        starts.append(story["correlation_id"])
        asked = [line for line in story["story"] if line["text"].endswith("asked of the endpoint")]
        assert len(asked) == 1, "the other process is no part of it"
    assert starts[0] != starts[1]


def unserializable() -> object:
    import threading

    return threading.Lock()


def failure(place: Campus, who: str, function: Any, **config: Any) -> MepError:
    with place.executor(who, **config) as executor, pytest.raises(MepError) as caught:
        executor.submit(function).result(timeout=RESULT_S)
    return caught.value


def run_why(place: Campus, *words: str, run_as: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "mep"), "why", *words], env=place.site.env, capture_output=True, text=True, check=False, user=run_as
    )


def story_of(place: Campus, about: str) -> dict[str, Any]:
    done = run_why(place, about, "site", "--json")
    assert done.returncode == 0, done.stderr
    story: dict[str, Any] = json.loads(done.stdout)
    assert [line["at"] for line in story["story"]] == sorted(line["at"] for line in story["story"])
    return story


def too_large() -> bytes:
    return bytes(2200 * 1024 * 1024)  # more than may go by reference; its pages are never touched


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        (kill_worker, "WORKER_LOST", "SIGKILL"),
        (unserializable, "RESULT_UNSERIALIZABLE", "lock"),
        (too_large, "RESULT_TOO_LARGE", "more than the"),
    ],
)
def test_a_tasks_own_id_leads_to_its_story(place: Campus, function: Any, code: str, said: str) -> None:
    error = failure(place, "alice", function)
    assert error.code == code
    story = story_of(place, error.correlation_id)
    assert (story["code"], story["status"]) == (code, "failed")
    assert said in story["cause"]["reason"]
    assert story["cause"]["source"] == "user endpoint"
    assert {"relay", "monitor", "user endpoint"} <= {line["source"] for line in story["story"]}
    assert story["local_user"] == place.accounts["alice"].name
    assert not story["notes"]
    shown = run_why(place, error.correlation_id).stdout.splitlines()
    assert shown[0] == f"{error.correlation_id}: failed {code}"
    assert shown[1].startswith("cause: ")
    assert story_of(place, story["uep_id"])["correlation_id"] == story["correlation_id"]


@pytest.mark.parametrize(("who", "code"), [("mallory", "IDENTITY_NOT_MAPPED"), ("rooty", "ACCOUNT_REFUSED")])
def test_so_does_the_id_of_a_start(place: Campus, who: str, code: str) -> None:
    error = failure(place, who, pow)
    assert error.code == code
    story = story_of(place, error.correlation_id)
    assert story["code"] == code
    assert story["cause"]["level"] in ("WARNING", "ERROR")
    assert story["cause"]["source"] in ("monitor", "mapper", "keeper")
    assert {"relay", "monitor"} <= {line["source"] for line in story["story"]}


def test_blocks_that_fail_are_told_with_their_stderr(place: Campus) -> None:
    config = {"engine": "GlobusComputeEngine", "init": f"echo {SAID} >&2; exit 3"}
    error = failure(place, "bob", abs, **config)
    assert error.code == "ENGINE_FAILED"
    story = story_of(place, error.correlation_id)
    assert SAID in story["cause"]["reason"]
    assert story["cause"]["source"] == "block"
    failed = [line for line in story["story"] if line["text"].startswith("a block failed")]
    assert len(failed) >= 3
    assert all("block=" in line["text"] and "job=" in line["text"] for line in failed)


def hold(path: str) -> None:
    import time

    open(path, "w").close()
    time.sleep(60)


def test_a_user_endpoint_that_was_killed_is_told(place: Campus) -> None:
    begun = Path(place.accounts["alice"].home, "begun")
    with place.executor("alice", project="killed") as executor:
        before = place.pids()
        future = executor.submit(hold, str(begun))
        until("it runs", begun.exists, RESULT_S)
        for pid in place.new_pids(before).values():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(MepError) as caught:
            future.result(timeout=RESULT_S)
    assert caught.value.code == "USER_ENDPOINT_LOST"
    for about in (future.task_id, caught.value.correlation_id):
        story = story_of(place, str(about))
        assert story["code"] == "USER_ENDPOINT_LOST"
        assert "killed" in story["cause"]["reason"]
    lost = [line for line in story["story"] if line["source"] in ("monitor", "relay") and line["level"] != "INFO"]
    assert lost, "the end of the process is told too"


def test_a_home_that_holds_no_files_is_told(place: Campus) -> None:
    account = place.accounts["bob"]
    directory = Path(account.home, ".mep", "uep")
    if not directory.exists():
        with place.executor("bob") as executor:
            executor.submit(abs, 1).result(timeout=RESULT_S)
    directory.chmod(0o500)
    try:
        error = failure(place, "bob", abs, project="new")
    finally:
        directory.chmod(0o700)
    assert error.code == "HOME_UNUSABLE"
    story = story_of(place, error.correlation_id)
    assert story["code"] == "HOME_UNUSABLE"
    assert "Permission denied" in story["cause"]["reason"]
    assert story["local_user"] == account.name


def test_the_link_is_down_and_the_hosts_own_logs_tell(place: Campus) -> None:
    error = failure(place, "alice", unserializable)
    place.site.relay.stop()
    try:
        until("the link is down", lambda: place.endpoint.status().get("link_state") != "up")
        uep = next(one["uep_id"] for one in place.endpoint.status()["user_endpoints"])
        story = story_of(place, uep)
        assert "the relay was not asked" in story["notes"][0]
        assert any(error.correlation_id in line["text"] for line in story["story"])
    finally:
        place.site.start_relay()
        until("the link is up", lambda: place.endpoint.status().get("link_state") == "up")


def test_the_relays_part_outlives_a_relay_that_is_killed(place: Campus) -> None:
    error = failure(place, "mallory", abs, project="before")
    told = [line for line in story_of(place, error.correlation_id)["story"] if line["source"] == "relay"]
    assert told
    time.sleep(1)  # the relay writes within a fraction of a second, and nothing shows when
    place.site.relay.kill()
    place.site.start_relay()
    until("the link", lambda: place.endpoint.status().get("link_state") == "up")
    after = [line for line in story_of(place, error.correlation_id)["story"] if line["source"] == "relay"]
    assert [line for line in after if line in told] == told


def test_an_unknown_id_is_said_to_be_unknown(place: Campus) -> None:
    done = run_why(place, "00000000-0000-4000-8000-000000000000")
    assert done.returncode == 1
    assert "nothing is known of 00000000-0000-4000-8000-000000000000 at site" in done.stderr
    for word in ("no id", "site"):  # a word that many lines of the log have
        done = run_why(place, word)
        assert (done.returncode, f"{word}: not an id: give a correlation id" in done.stderr) == (2, True)


def test_nobody_else_may_ask_the_manager(place: Campus) -> None:
    path = place.endpoint.runtime_dir / "manager.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_uid == 0
    done = run_why(place, "00000000-0000-4000-8000-000000000000", "site", run_as=place.accounts["alice"].uid)
    assert done.returncode != 0


def test_a_refused_submission_is_found_too(place: Campus) -> None:
    error = failure(place, "alice", pow, workers=99)
    assert error.code == "USER_CONFIG_INVALID"
    story = story_of(place, error.correlation_id)
    assert story["code"] == "USER_CONFIG_INVALID"
    assert story["cause"]["source"] == "relay"
