"""The events of `mep why` on disk: they outlive the relay, in bounds, and hold nothing up."""

from __future__ import annotations

import sqlite3
import stat
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mep_wire.errors import BodyInvalid, EndpointNotFound
from relay.api.app import App
from relay.dispatch import story_file
from relay.dispatch.stories import MAX_EVENTS, Stories
from relay.dispatch.story_file import LINK_LINES, StoryEvent, StoryFile
from tests.support.waiting import until

LATE = 4e9
"""A time that no event is too old for."""


def event(number: int, uep_id: str = "", correlation_id: str = "") -> StoryEvent:
    return StoryEvent(LATE + number, "INFO", str(number), uep_id, correlation_id)


def texts(stories: Stories, endpoint_id: str, *names: str) -> list[str]:
    return [one.text for one in stories.about(endpoint_id, names)]


def test_events_outlive_the_relay_and_later_events_of_a_busy_endpoint(tmp_path: Path) -> None:
    path, now = tmp_path / "stories.sqlite", [LATE]
    stories = Stories(lambda: now[0], StoryFile(path))
    stories.note("e", "INFO", "the manager is here")
    stories.note("e", "INFO", "asked", uep_id="u", correlation_id="c-1")
    for number in range(MAX_EVENTS):
        stories.note("e", "INFO", str(number), uep_id="v")
    stories.refused("e", refusal := BodyInvalid(reason="no"))
    until("the early event", lambda: texts(stories, "e", "c-1") == ["the manager is here", "asked"])
    stories.close()
    now[0] += 1
    again = Stories(lambda: now[0], StoryFile(path))
    again.note("e", "WARNING", "failed", uep_id="u", correlation_id="c-1")
    assert texts(again, "e", "u") == ["the manager is here", "asked", "failed"]  # each once, in memory and on disk
    assert texts(again, "f", "u") == []
    assert texts(again, "e", refusal.correlation_id)[-1].startswith("submission refused: code=BODY_INVALID")
    again.close()


def test_an_answer_reads_the_events_of_its_ids_alone(tmp_path: Path) -> None:
    """An endpoint may have tens of thousands, and its manager may ask again and again, in the relay's event loop."""
    file = StoryFile(tmp_path / "stories.sqlite")
    assert file._reader is not None
    plan = str(list(file._reader.execute(f"EXPLAIN QUERY PLAN {story_file._OWN}", ("e", "u", "u", 9))))
    assert "event_of_uep (uep_id=?)" in plan
    assert "event_of_start (correlation_id=?)" in plan
    assert "event_of_endpoint" not in plan
    file.close()


def test_submissions_to_endpoints_that_there_are_not_are_not_remembered() -> None:
    """Or a person could push out what is known of all endpoints, with ids that they make up."""
    stories = Stories()
    service: Any = SimpleNamespace(dispatcher=SimpleNamespace(live=SimpleNamespace(stories=stories)))
    app, endpoint_id = App(service), str(uuid.uuid4())
    path = f"/v3/endpoints/{endpoint_id}/submit"
    app._tell_endpoint(path, EndpointNotFound(endpoint_id=endpoint_id))
    assert stories._of == {}
    app._tell_endpoint(path, BodyInvalid(reason="no"))
    assert len(stories._of) == 1


def test_events_are_written_while_the_relay_runs(tmp_path: Path) -> None:
    file = StoryFile(tmp_path / "stories.sqlite")
    file.add("e", event(1, "u"))
    until("the event on disk", lambda: file.about("e", ["u"], 9))  # a relay that is killed has it
    modes = {stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    assert modes == {0o600}
    file.close()


def test_each_endpoint_and_the_refusals_have_their_bounds(tmp_path: Path) -> None:
    path = tmp_path / "stories.sqlite"
    file = StoryFile(path, of_endpoint=50, refusals=20)
    file.add("quiet", event(1, "u"))
    for batch in range(6):
        for number in range(100):
            file.add("busy", event(1000 * batch + number, "u"))
            file.add(f"any{number}", event(number, "", "c"), refusal=True)
        until("the batch", lambda batch=batch: event(1000 * batch + 99, "u") in file.about("busy", ["u"], 200))
    file.close()
    with sqlite3.connect(path) as found:
        rows = dict(found.execute("SELECT endpoint, count(*) FROM event WHERE refusal = 0 GROUP BY endpoint"))
        (refusals,) = found.execute("SELECT count(*) FROM event WHERE refusal = 1").fetchone()
    assert rows == {"quiet": 1} | {"busy": rows["busy"]}
    assert rows["busy"] <= 150
    assert refusals <= 120


def test_old_events_go(tmp_path: Path) -> None:
    path = tmp_path / "stories.sqlite"
    file = StoryFile(path, of_endpoint=1)
    file.add("e", event(int(5 - LATE), "u"))  # of 1970
    file.close()
    with sqlite3.connect(path) as found:
        assert found.execute("SELECT count(*) FROM event").fetchone() == (0,)


def test_the_link_has_no_more_than_its_share_of_an_answer(tmp_path: Path) -> None:
    file = StoryFile(tmp_path / "stories.sqlite")
    now = LATE
    file.add("e", StoryEvent(now, "INFO", "own", "u", ""))
    for number in range(LINK_LINES + 10):
        file.add("e", StoryEvent(now + number, "INFO", f"link {number}", "", ""))
    until("all", lambda: any(one.text == f"link {LINK_LINES + 9}" for one in file.about("e", ["u"], 9)))
    found = file.about("e", ["u"], 9)
    assert len(found) == LINK_LINES + 1
    assert found[0].text == "own"
    file.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_damaged_file_or_one_of_another_version_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "stories.sqlite"
    if content is None:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
    else:
        path.write_bytes(content)
    file = StoryFile(path)
    file.add("e", event(1, "u"))
    until("the event", lambda: file.about("e", ["u"], 9))
    file.close()


def test_a_place_that_cannot_be_written_holds_nothing_up(tmp_path: Path) -> None:
    stories = Stories(file=StoryFile(tmp_path / "nosuch" / "stories.sqlite"))
    stories.note("e", "INFO", "asked", uep_id="u")
    assert texts(stories, "e", "u") == ["asked"]
    stories.close()


def test_a_file_that_is_damaged_later_is_no_error_for_those_who_ask(tmp_path: Path) -> None:
    path = tmp_path / "stories.sqlite"
    stories = Stories(file=StoryFile(path))
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE event")
    stories.note("e", "INFO", "asked", uep_id="u")
    assert texts(stories, "e", "u") == ["asked"]
    stories.close()
