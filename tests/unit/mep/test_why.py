"""`mep why` over the whole catalogue: for a log line of every code, by each process that may write it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from mep.boundary.text import log_line, printable
from mep.cli.story import (
    MAX_LINES,
    USER_ENDPOINT,
    Line,
    Story,
    of_monitor,
    of_user_endpoint,
    parse_audit,
    parse_line,
    parse_relay,
    process_of,
    processes,
    text_of,
)
from mep.cli.why_command import _id_of, _sentence
from mep_wire.errors import by_code

TASK, UEP, START = "0192f0c4-0000-7000-8000-000000000001", "11111111-0000-4000-8000-000000000001", "c-1"
OTHER = "0192f0c4-0000-7000-8000-000000000002"
WHY = 'the reason: "why", \\ and\nmore'
CODES = sorted(by_code())


def line(process: str, level: str, text: str, at: float = 100.0, /, **fields: object) -> Line:
    made = parse_line(log_line(process, level, text, fields, at=at))
    assert made is not None
    return made


def monitor_says(code: str) -> Line:
    said = {"outcome": "refused", "code": code, "correlation_id": START, "uep_id": UEP, "detail": WHY}
    return line("monitor", "WARNING", "start answered", **said)


def keeper_says(code: str) -> Line:
    return line("keeper", "WARNING", "user endpoint reports", uep=UEP, code=code, text=WHY, correlation_id=START)


def start_says(code: str) -> Line:
    return line("mep-uep", "ERROR", "cannot start", code=code, public="no", detail=WHY)


def task_says(code: str) -> Line:
    return line("mep-uep", "WARNING", "task failed", code=code, task=TASK, function="f", attempt=1, reason=WHY)


def relay_says(code: str) -> Line:
    text = "start refused, its tasks fail: code=" + code + " " + WHY.replace("\n", " ")
    (made,) = parse_relay({"lines": [{"at": 100.0, "level": "ERROR", "text": text}]})
    return made


def audit_says(code: str) -> Line:
    record = {"time": "1970-01-01T00:01:40.000Z", "event": "start", "outcome": "refused", "code": code}
    made = parse_audit(
        json.dumps(record | {"correlation_id": START, "uep_id": UEP, "detail": WHY, "identities": "secret"})
    )
    assert made is not None
    return made


@pytest.mark.parametrize("says", [monitor_says, keeper_says, start_says, task_says, relay_says, audit_says])
@pytest.mark.parametrize("code", CODES)
def test_every_code_has_its_story(code: str, says: Callable[[str], Line]) -> None:
    story = Story(TASK)
    story.add([line("mep-uep", "INFO", "starting", 99.0, correlation_id=START), says(code)])
    cause = story.cause()
    assert cause is not None
    assert story.code == code
    assert WHY.partition("\n")[0] in cause.reason
    shown = text_of(story, _sentence(story)).splitlines()
    assert shown[0] == f"{TASK}: {code}"
    assert shown[1].startswith('cause: the reason: "why"')
    assert all(one.isprintable() for one in shown), "no line of a log reaches the terminal as it is"
    assert any(one.startswith("the person reads: ") for one in shown)
    assert "secret" not in "".join(shown)
    assert json.loads(json.dumps(story.to_json()))["cause"]["code"] == code


@pytest.mark.parametrize("code", CODES)
def test_the_process_nearest_to_the_cause_has_the_word(code: str) -> None:
    story = Story(TASK)
    relay = parse_relay({"lines": [{"at": 90.0, "level": "ERROR", "text": f"tasks fail: code={code} far"}]})
    near = line("mep-uep", "ERROR", "cannot start", 95.0, code=code, detail="near")
    story.add([*relay, near, line("monitor", "ERROR", "start answered", 96.0, code=code, detail="middle")])
    cause = story.cause()
    assert cause is not None
    assert cause.reason == "near"
    assert [one.at for one in story.lines] == [90.0, 95.0, 96.0], "in the order in which it happened"


def test_failed_blocks_are_the_cause_of_a_failed_engine() -> None:
    story = Story(TASK)
    failed = [
        line("mep-uep", "WARNING", "a block failed", at, block=number, reason="it ended", stderr="/x")
        for number, at in enumerate((10.0, 20.0, 30.0))
    ]
    stderr = Line(10.0, "ERROR", "block", "stderr of /x: module: not found", {"detail": "module: not found"})
    ended = line("mep-uep", "ERROR", "task failed", 31.0, code="ENGINE_FAILED", task=TASK, reason="blocks failed")
    story.add([ended, *failed, stderr])
    cause = story.cause()
    assert cause is not None
    assert cause.reason == "module: not found"
    lost = Story(TASK)
    lost.add([*failed, line("mep-uep", "WARNING", "task failed", 5.0, code="WORKER_LOST", task=TASK, reason="SIGKILL")])
    assert (cause := lost.cause()) is not None
    assert cause.reason == "SIGKILL", "an unrelated block is not blamed"


def test_a_line_without_a_reason_gives_way_to_one_that_has_it() -> None:
    story = Story(TASK)
    relay = parse_relay(
        {"lines": [{"at": 9.0, "level": "ERROR", "text": "start refused: code=HOME_UNUSABLE disk full"}]}
    )
    story.add([*relay, line("monitor", "WARNING", "start answered", 8.0, code="HOME_UNUSABLE", detail="exit status 1")])
    assert (cause := story.cause()) is not None
    assert (cause.source, cause.reason) == ("relay", "disk full")


def test_nothing_failed_is_said_too() -> None:
    story = Story(TASK, status="running")
    story.add([line("mep-uep", "INFO", "joined the relay")])
    assert story.cause() is None
    assert text_of(story, "").startswith(f"{TASK}: running")


def test_only_the_process_that_ran_the_task_counts() -> None:
    def start(at: float, correlation_id: str) -> Line:
        return line("mep-uep", "INFO", "starting", at, correlation_id=correlation_id)

    def task(at: float, name: str) -> Line:
        return line("mep-uep", "WARNING", "task failed", at, code="WORKER_LOST", task=name, reason="r")

    log = [start(1, "c-1"), task(2, TASK), task(2.5, OTHER), start(3, "c-2"), task(4, OTHER)]
    parts = processes(log)
    assert [len(part) for part in parts] == [3, 2]
    part = process_of(parts, TASK, "c-2")
    assert [one.at for one in of_user_endpoint(part, TASK)] == [1, 2]
    assert process_of(parts, "nobody", "c-2") is parts[1]
    assert process_of(parts, "nobody", "c-9") == []


def test_the_monitors_lines_are_those_of_one_start() -> None:
    def of(at: float, **fields: object) -> Line:
        return line("monitor", "INFO", "x", at, uep_id=UEP, **fields)

    log = [of(1, correlation_id="c-0"), of(2), of(3, correlation_id="c-1"), of(4), of(5, correlation_id="c-1"), of(6)]
    assert [one.at for one in of_monitor(log, "c-1", UEP)] == [3, 4, 5]


def test_a_flood_of_lines_is_cut() -> None:
    log = [line("mep-uep", "WARNING", "tasks wait", float(at)) for at in range(5 * MAX_LINES)]
    found = of_user_endpoint(log, TASK)
    assert len(found) == MAX_LINES
    assert (found[0].at, found[-1].at) == (0.0, 5.0 * MAX_LINES - 1)


@pytest.mark.parametrize("text", ["", "no log", '{"a": 1}', "2026-11-29T22:00:00.000Z INFO x: no pid", "[]", "null"])
def test_what_is_no_line_of_ours_is_left_out(text: str) -> None:
    assert parse_line(text) is None
    assert parse_audit(text) is None


def test_a_persons_log_speaks_for_no_other_process() -> None:
    """Anything may stand in it: the words of monitor, keeper or relay are believed in their own logs alone."""
    for name in ("monitor", "keeper", "mapper", "manager", "relay", "block"):
        made = parse_line(
            log_line(name, "ERROR", "start refused", {"code": "SITE_BUSY", "public": "no"}), USER_ENDPOINT
        )
        assert made is not None
        assert made.source == "user endpoint"
        story = Story(TASK)
        story.add([made])
        assert _sentence(story) != "no"
        assert "said by the user endpoint" in text_of(story, "")


@pytest.mark.parametrize(
    "lines",
    [
        3, [3], [{}], ["text"], {"a": 1}, [{"at": "x", "level": "INFO", "text": ""}],
        *([{"at": at, "level": "INFO", "text": ""}] for at in (1e300, -1e300, float("nan"), float("inf"), None)),
        [{"at": 1, "level": "INFO\n2026 monitor", "text": ""}],
    ],
)  # fmt: skip
def test_an_answer_of_a_hostile_manager_is_refused(lines: object) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_relay({"lines": lines})


def test_the_first_line_is_one_line() -> None:
    story = Story(TASK, status="failed\n2026-01-01T00:00:00.000Z  monitor", code="A\x1b[31m")
    assert text_of(story, "").splitlines()[0] == f"{TASK}: {printable(story.status)} {printable(story.code)}"


def test_ids_of_a_hostile_manager_are_ids() -> None:
    """A space would have every line of the logs read, and an id names a directory in the person's home."""
    hostile = (" ", "../../.ssh", "..", "/etc", "x" * 65, "a\nb")
    assert [_id_of({"uep_id": said}, "uep_id") for said in hostile] == [""] * len(hostile)
    assert _id_of({"uep_id": UEP}, "uep_id") == UEP
