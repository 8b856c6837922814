"""Foreign text: the escaped characters, that root's copy of the function agrees, and each log's lines and fields."""

from __future__ import annotations

import ast
import inspect
import io
import logging
import os
import pathlib
import sys
import unicodedata

import pytest

from mep.boundary import log as boundary_log
from mep.boundary import text as boundary_text
from mep_sdk.errors import RemoteError, RemoteTraceback
from mep_wire import text as wire_text
from mep_wire.errors import EndpointForbidden, rebuild
from relay import log as relay_log
from user_endpoint.bounded_log import BoundedFile, BoundedLog

ATTACK = "\x1b[2J\x9b31m\u202etxt\u2066\u200b\u2028\x7f\r\ud800\x00"
FIELD = 'x" level=ERROR user="root\nforged line'


def raw(text: str) -> set[str]:
    """Return the characters of `text` that have an effect on a terminal or a line."""
    return {c for c in text if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and c != "\n"}


def test_every_character_without_a_glyph_is_escaped_and_no_other() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        assert (boundary_text.printable(character) == character) == character.isprintable()
    for character in [
        *map(chr, range(32)),
        *map(chr, range(0x7F, 0xA0)),
        *"\u202a\u202e\u2066\u2069\u2028\u2029\u200b",
    ]:
        assert boundary_text.printable(character).isascii()
    assert boundary_text.printable("Ünïcode 試験 ok") == "Ünïcode 試験 ok"
    assert boundary_text.printable_lines("a\n\tb\x1b") == "a\n\tb\\x1b"


def test_both_copies_are_the_same_code() -> None:
    trees = [ast.parse(inspect.getsource(module)) for module in (boundary_text, wire_text)]
    assert [ast.dump(node) for node in trees[0].body[1:]] == [ast.dump(node) for node in trees[1].body[1:]]


def test_a_stream_that_escapes() -> None:
    under = io.StringIO()
    stream = boundary_text.EscapingStream(under)
    print("one\n\ttwo", ATTACK, file=stream)
    stream.writelines(["\x1b", "\n"])
    assert not raw(under.getvalue().replace("\t", ""))
    assert under.getvalue().startswith("one\n\ttwo ")
    assert not stream.isatty()


def lines_of_the_boundarys_log(capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> str:
    boundary_log.Log("monitor").warning(f"text {ATTACK}", user=FIELD, other=ATTACK, plain="alice", empty="")
    return capfd.readouterr().err


def lines_of_a_user_endpoints_log(capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> str:
    BoundedLog(BoundedFile(str(tmp_path / "log"))).warning(
        f"text {ATTACK}", user=FIELD, other=ATTACK, plain="alice", empty=""
    )
    return (tmp_path / "log").read_text()


def lines_of_the_relays_log(capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> str:
    fields = {"user": FIELD, "other": ValueError(ATTACK), "plain": "alice", "empty": ""}
    record = logging.getLogger("relay").makeRecord(
        "relay", logging.WARNING, "f", 1, f"text {ATTACK}", (), None, extra={"fields": fields}
    )
    return relay_log.formatter().format(record) + "\n"


@pytest.mark.parametrize("lines", [lines_of_the_boundarys_log, lines_of_a_user_endpoints_log, lines_of_the_relays_log])
def test_a_field_forges_neither_line_nor_field(
    lines: object, capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    text = lines(capfd, tmp_path)  # type: ignore[operator]
    assert text.count("\n") == 1 and not raw(text)
    assert r'user="x\" level=ERROR user=\"root\nforged line" other="' in text
    assert text.endswith(' plain=alice empty=""\n')


@pytest.mark.parametrize("lines", [lines_of_the_boundarys_log, lines_of_a_user_endpoints_log, lines_of_the_relays_log])
def test_every_log_has_the_same_line(
    lines: object, capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.25)
    text = lines(capfd, tmp_path)  # type: ignore[operator]
    process = text.split()[2]
    fields = {"user": FIELD, "other": ATTACK, "plain": "alice", "empty": ""}
    name, _, _ = process.partition("[")
    assert text == wire_text.log_line(name, "WARNING", f"text {ATTACK}", fields) + "\n"
    assert text.startswith(f"2023-11-14T22:13:20.250Z WARNING {name}[{os.getpid()}]: text ")


def test_a_level_leaves_out_those_below_it(tmp_path: pathlib.Path) -> None:
    said: list[str] = []
    log = wire_text.FieldLog("p", said.append, "WARNING")
    log.debug("1")
    log.info("2")
    log.warning("3", n=1)
    log.error("4")
    assert [line.split(": ", 1)[1] for line in said] == ["3 n=1\n", "4\n"]
    unknown = wire_text.FieldLog("p", said.append, "LOUD")
    unknown.debug("5")
    unknown.info("6")
    assert len(said) == 3


def test_a_traceback_in_the_relays_log_keeps_its_lines() -> None:
    forged = "2026-01-01T00:00:00Z INFO mep-relay[1]: user endpoint x ended"
    try:
        raise ValueError(f"{ATTACK}\n{forged}")
    except ValueError:
        record = logging.getLogger("relay").makeRecord("relay", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    text = relay_log.formatter().format(record)
    assert not raw(text) and "\n  Traceback (most recent call last):\n" in text
    assert all(line.startswith("  ") for line in text.splitlines()[1:]), "none can be taken for a line of the log"


def test_what_a_peer_said_is_harmless_in_an_exceptions_text() -> None:
    told = rebuild(EndpointForbidden.code, f"no {ATTACK}\nsecond line", f"id{ATTACK}\nthird")
    assert not raw(str(told)) and "\nsecond line" in str(told) and "\nthird" not in str(told)
    lost = RemoteError(type_name=f"T{ATTACK}", message=ATTACK, remote_traceback=ATTACK)
    assert not raw(str(lost)) and lost.remote_traceback == ATTACK
    assert not raw(str(RemoteTraceback(f"Traceback\n{ATTACK}")))


def test_what_others_print_into_a_user_endpoints_log_is_escaped(tmp_path: pathlib.Path) -> None:
    out = BoundedFile(str(tmp_path / "log"))
    stand_in = os.open("/dev/null", os.O_WRONLY)
    out.stand_for(stand_in)
    os.write(stand_in, f"a line\n{ATTACK}\ttab\n".encode("utf-8", "surrogatepass") + b"\xff\xfe no UTF-8\nhalf")
    BoundedLog(out).info("ours")
    os.write(stand_in, b" and half\n")
    out.close()
    text = (tmp_path / "log").read_text()
    assert not raw(text.replace("\t", ""))
    assert "a line\n" in text and "\\x1b[2J" in text and "\\xff\\xfe no UTF-8\n" in text
    assert "half and half\n" in text and ": ours\n" in text
    os.close(stand_in)
