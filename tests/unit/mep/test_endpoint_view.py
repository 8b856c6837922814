"""The layout of `mep status` and `mep top`: every width keeps UUIDs whole and loses no field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mep.cli.endpoint_state import exit_code, person_of
from mep.cli.endpoint_view import fitted, size_text, text_of, wrapped

UEP = "8a85c3a7-ca85-598f-b8e7-4f88f34858b3"
PART_OF_A_UUID = re.compile(r"[0-9a-f]{4}-[0-9a-f]{4}-")


def state(**changes: Any) -> dict[str, Any]:
    one = {
        "uep_id": UEP, "local_user": "alice", "person": "alice@example.edu", "state": "running", "since": 1.0,
        "tasks": {"waiting": 3, "running": 2, "done": 7, "failed": 1}, "values": '{"P": "\x1b[31mx"}',
        "blocks": "0 job 4711 running", "trouble": "", "last_failure": "TASK_FAILED: it failed",
        "log_path": f"/home/alice/.mep/uep/{UEP}/endpoint.log", "pid": 5, "cpu_s": 12.0, "memory_bytes": 3 << 20,
    }  # fmt: skip
    value = {
        "name": "site", "state": "up", "endpoint_id": UEP, "pid": 1, "link": "up", "problem": "", "mapping_problem": "",
        "configuration_problem": "", "overdue": 0, "accounts_overdue": 0, "configured_at": None,
        "configuration_refused_at": None, "mapping_refused_at": None, "user_endpoints": [one],
        "restrictions": [], "failures": [],
    }  # fmt: skip
    return value | changes


@pytest.mark.parametrize("width", [None, 250, 120, 100, 99, 60, 40])
@pytest.mark.parametrize("cut", [False, True])
def test_uuids_are_whole_and_lines_fit(width: int | None, cut: bool) -> None:
    lines = text_of(state(), width, cut=cut)
    assert any(line.startswith(UEP) for line in lines)
    assert "\x1b" not in "".join(lines)
    for line in lines:
        if PART_OF_A_UUID.search(line):
            assert UEP in line, line
        assert width is None or len(line) <= width or UEP in line, line
    text = " ".join(" ".join(lines).split())
    for word in ("alice", "running", "4711", "TASK_FAILED", "3 MB", "12 s"):
        assert word in text, (word, text)


def test_a_path_is_broken_after_slashes_and_a_fingerprint_nowhere() -> None:
    assert wrapped(f"log: /home/alice/.mep/uep/{UEP}/endpoint.log", 48, "  ") == [
        "log: /home/alice/.mep/uep/", f"  {UEP}/", "  endpoint.log",
    ]  # fmt: skip
    assert wrapped("key SHA256:abc/def", 10, "  ") == ["key", "  SHA256:abc/def"]


def test_a_cut_line_drops_a_uuid_that_does_not_fit_whole() -> None:
    assert fitted(f"log: {UEP}", 20) == "log:…"
    assert fitted("short", 20) == "short"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0), ({"pid": None, "link": "down"}, 3), ({"link": "down", "overdue": 1}, 8), ({"link": "gone"}, 8),
        ({"link": "connecting"}, 0), ({"mapping_problem": "x", "overdue": 1}, 9), ({"configuration_problem": "x"}, 9),
        ({"overdue": 1}, 10), ({"accounts_overdue": 1}, 10),
    ],
)  # fmt: skip
def test_exit_codes(changes: dict[str, Any], code: int) -> None:
    assert exit_code(state(**changes)) == code


@pytest.mark.parametrize("text", ["", "[", "3", "[3]", "{}", '[{"username": ""}]', "[" * 4096])
def test_identities_that_name_nobody(text: str) -> None:
    assert person_of(text)[0] == ""


def test_sizes() -> None:
    assert [size_text(size) for size in (None, 0, 1, 5 << 20, 3 << 30)] == ["-", "-", "1 B", "5 MB", "3.0 GB"]
