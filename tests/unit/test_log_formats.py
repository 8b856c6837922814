"""Both formats of a log's line: what is written, what is read back, and that hostile text forges neither."""

from __future__ import annotations

import json
import logging
import os
import pathlib
from collections.abc import Iterator

import pytest

from mep.boundary import log as boundary_log
from mep.boundary import text as boundary_text
from mep.boundary.text import MAX_JSON_LINE, json_line, log_line
from mep.cli.log_lines import as_text, read_line
from mep.cli.log_view import _about, _text
from mep.cli.story import USER_ENDPOINT, parse_line
from mep.cli.user_logs import _stderr
from mep_wire import text as wire_text
from user_endpoint.bounded_log import BoundedFile, BoundedLog, json_output
from user_endpoint.library_log import _Forward

ATTACK = "\x1b[2J\x9b31m\u202etxt\u2066\u200b\u2028\x7f\r\ud800\x00"
FIELDS = {"user": 'x" level=ERROR user="root', "path": "C:\\a\\", "plain": "alice", "empty": "", "n": 3, "none": None}
HOSTILE = {"attack": ATTACK, "lines": "a\nb", "end": '"}\n{"at": "'}
BOTH = pytest.mark.parametrize("make", [log_line, json_line])


@pytest.fixture
def as_json() -> Iterator[None]:
    for each in (boundary_text, wire_text):
        each.set_format("json")
    yield
    for each in (boundary_text, wire_text):
        each.set_format("text")


def test_a_line_of_json_has_its_head_first_and_the_fields_as_members() -> None:
    made = json_line("keeper", "INFO", "started", {"uep_id": "u", "n": 3, "ok": True, "why": None}, at=0.25, pid=7)
    assert json.loads(made) == {
        "at": "1970-01-01T00:00:00.250Z", "level": "INFO", "process": "keeper", "pid": 7, "event": "started",
        "uep_id": "u", "n": 3, "ok": True, "why": "None",
    }  # fmt: skip
    assert list(json.loads(made))[:5] == list(boundary_text.HEAD)


def test_a_field_never_replaces_the_head() -> None:
    fields = dict.fromkeys(boundary_text.HEAD, "forged")
    made = json_line("monitor", "INFO", "text", fields, pid=7)
    assert json.loads(made)["process"] == "monitor" and json.loads(made)["process_"] == "forged"
    line = read_line(made)
    assert line is not None and (line.process, line.level, line.pid, line.fields) == ("monitor", "INFO", 7, fields)


@pytest.mark.parametrize("text", [f"text {ATTACK}", "a\nb", '"}, {"level": "ERROR"', "試験"])
def test_a_line_of_json_is_ascii_on_one_line_whatever_it_says(text: str) -> None:
    made = json_line("p", "INFO", text, HOSTILE)
    assert made.isascii() and made.isprintable()
    found = json.loads(made)
    assert found["event"] == text and {key: found[key] for key in HOSTILE} == HOSTILE
    line = read_line(made)
    assert line is not None and line.fields == HOSTILE
    assert str(line).isprintable(), "as it is shown"


@pytest.mark.parametrize("size", [3000, 5000, 1_000_000])
@pytest.mark.parametrize("letter", ["x", "\x1b", "\U0001f600"])
def test_a_long_line_stays_one_object_in_its_bound(letter: str, size: int) -> None:
    made = json_line("p", "ERROR", letter * size, {"detail": letter * size, "uep_id": "u", "n": 3})
    assert len(made) <= MAX_JSON_LINE
    found = json.loads(made)
    assert (found["uep_id"], found["n"], found["level"]) == ("u", 3, "ERROR")
    assert found["event"] and set(found["event"]) <= set(letter)


def test_a_number_can_not_break_the_bound() -> None:
    assert len(json_line("p", "INFO", "t", {"n": 10**4200})) <= MAX_JSON_LINE


@pytest.mark.parametrize("text", ["an event", "relay 127.0.0.1:1 connected", ""])
def test_both_formats_read_the_same(text: str) -> None:
    words, members = (make("mep-uep", "WARNING", text, FIELDS, at=1.5, pid=7) for make in (log_line, json_line))
    assert read_line(words) == read_line(members) is not None
    assert parse_line(words) == parse_line(members) is not None
    assert as_text(members) == as_text(words) == words
    line = read_line(words)
    assert line is not None and line.fields == {key: str(value) for key, value in FIELDS.items()}


@pytest.mark.parametrize(
    "line",
    [
        "", "no log", "{", "{}", "[]", "null", '{"a": 1}', "[" * 100_000, '{"at": ' * 50_000,
        *(json.dumps({**json.loads(json_line("p", "INFO", "t", {}, at=1.5, pid=7)), **changed}) for changed in (
            {"at": 1}, {"at": "now"}, {"level": "LOUD"}, {"level": []}, {"process": "a b"}, {"process": None},
            {"pid": "1"}, {"pid": -1}, {"pid": True}, {"pid": 1.5}, {"pid": 2**40}, {"event": {}},
        )),
        json_line("p", "INFO", "t", {}, at=1.5, pid=7)[:-1],
    ],
)  # fmt: skip
def test_what_is_no_line_of_a_log_is_left_out(line: str) -> None:
    assert read_line(line) is None and as_text(line) == line


def test_members_of_other_kinds_do_no_harm() -> None:
    odd = {"list": [1, {"a": ATTACK}], "a key\n": "x", "": "y", "ok": "z"}
    line = read_line(json.dumps({**json.loads(json_line("p", "INFO", "t", {})), **odd}))
    assert line is not None and line.fields.keys() == {"list", "ok"}
    assert str(line).isprintable()


@BOTH
def test_a_persons_log_speaks_for_no_other_process(make: object) -> None:
    made = parse_line(make("monitor", "ERROR", "t", {"code": "SITE_BUSY"}), USER_ENDPOINT)  # type: ignore[operator]
    assert made is not None and made.source == USER_ENDPOINT


@BOTH
def test_mep_logs_shows_and_finds_lines_of_both_formats(make: object) -> None:
    raw = make("monitor", "INFO", "started", {"user": "alice", "odd": ATTACK}, at=0.0, pid=7)  # type: ignore[operator]
    shown = _text(raw.encode())
    assert shown.startswith("1970-01-01T00:00:00.000Z INFO monitor[7]: started user=alice odd=")
    assert shown.isprintable()
    assert _about("alice", "")(shown) and not _about("ali", "")(shown)


@BOTH
def test_the_stderr_of_a_failed_block_is_found(make: object, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'a "block"'
    path.write_text("no such module")
    line = make("mep-uep", "ERROR", "a block failed", {"block": 1, "stderr": str(path)})  # type: ignore[operator]
    root = os.open(tmp_path, os.O_RDONLY)
    assert _stderr(root, str(tmp_path), f"noise\n{line}\n".encode()) == {str(path): "no such module"}
    os.close(root)


@pytest.mark.usefixtures("as_json")
def test_the_log_of_the_endpoint(capfd: pytest.CaptureFixture[str]) -> None:
    boundary_log.Log("monitor").warning(f"text {ATTACK}", detail="x" * 10_000, process="manager")
    boundary_log.bare_line("monitor", "refused")
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert first["process"] == "monitor" and first["process_"] == "manager"
    assert (second["event"], second["level"]) == ("refused", "ERROR")


def test_a_bare_line_of_text_is_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    boundary_log.bare_line("monitor", "mep monitor: refused")
    assert capfd.readouterr().err == "mep monitor: refused\n"


OWN = json_line("manager", "INFO", "all is well", {"key": 'a "quoted"\nvalue', "n": -3, "ok": True}, pid=7)


def test_a_helpers_own_lines_are_known() -> None:
    own = boundary_log.own_line("manager")
    assert own.fullmatch(OWN)
    assert own.fullmatch(json_line("manager", "ERROR", ATTACK * 1000, {"a": ATTACK * 1000, "process": "mapper"}))
    assert own.fullmatch(log_line("manager", "INFO", "all is well", {"key": "value"}))


@pytest.mark.parametrize(
    "line",
    [
        json_line("monitor", "INFO", "t", {}, at=1.5, pid=8),
        OWN[:-1] + ', "process": "monitor"}', OWN[:-1] + ', "level": "ERROR"}', OWN[:-1] + ', "at": "x"}',
        OWN[:-1] + ', "\\u0070rocess": "monitor"}', OWN[:-1] + ', "a": {"b": 1}}', OWN[:-1] + ', "a": [1]}',
        OWN[:-1], OWN + OWN, OWN + "\r", OWN + " {", OWN[:-1] + ', "a": "\x1b"}', OWN[:-1] + ', "a": "\u202e"}',
        OWN[:-1] + ', "a": "\\"}', OWN[:-1] + ', "a": 1e5}', " " + OWN, OWN[:-1] + ",}",
    ],
)  # fmt: skip
def test_no_other_line_passes_for_a_helpers_own(line: str) -> None:
    assert not boundary_log.own_line("manager").fullmatch(line)


@pytest.mark.usefixtures("as_json")
def test_the_log_of_a_user_endpoint_holds_nothing_but_json(tmp_path: pathlib.Path) -> None:
    out, stand_in = BoundedFile(str(tmp_path / "log"), escape=json_output), os.open("/dev/null", os.O_WRONLY)
    out.stand_for(stand_in)
    library = json_line("mep-uep", "WARNING", "from a library", {"source": "parsl"})
    raw = f"a line\n\n{ATTACK}\n{library}\n{'y' * 10_000}\n".encode("utf-8", "surrogatepass")
    os.write(stand_in, raw + b'{"at": "forged\n{"at": ' + b"\xff\xfe no UTF-8\nhalf")
    BoundedLog(out).info("ours", correlation_id="c-1")
    out.close()
    os.close(stand_in)
    text = (tmp_path / "log").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.isascii() and all(read_line(line) for line in text.splitlines())
    assert [line["event"] for line in lines].count("from a library") == 1
    printed = [line["line"] for line in lines if line["event"] == "output"]
    assert printed[0] == "a line" and '{"at": "forged' in printed and printed[-1] == "half"
    assert "".join(printed).count("y") == 10_000
    assert [line["correlation_id"] for line in lines if line["event"] == "ours"] == ["c-1"]


def test_too_much_output_at_once_leaves_whole_lines(tmp_path: pathlib.Path) -> None:
    out = BoundedFile(str(tmp_path / "log"), limit=4000, escape=json_output)
    stand_in = os.open("/dev/null", os.O_WRONLY)
    out.stand_for(stand_in)
    os.write(stand_in, b"\x01\n" * 1500)
    out.close()
    os.close(stand_in)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines and all(read_line(line) for line in lines)


@pytest.mark.usefixtures("as_json")
def test_the_fields_of_an_engines_record_are_members(capfd: pytest.CaptureFixture[str]) -> None:
    name, quoted = "user_endpoint.engines.htex.blocks", wire_text.field_text('it "ended"\nC:\\a')
    record = logging.makeLogRecord(
        {"name": name, "levelname": "ERROR", "msg": "a block failed block=%s reason=%s", "args": ("0", quoted)}
    )
    _Forward().emit(record)
    found = json.loads(capfd.readouterr().err)
    assert (found["event"], found["block"], found["reason"]) == ("a block failed", "0", 'it "ended"\\nC:\\a')
