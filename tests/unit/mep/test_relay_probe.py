"""The relay's clock as `mep check` compares it: by the Date of an answer."""

from __future__ import annotations

import pytest

from mep.cli.relay_probe import clock_notes

DATE, AT = "Thu, 01 Jan 2026 00:10:00 GMT", 1767226200.0


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (AT, ""),
        (AT + 29, ""),
        (AT - 29, ""),
        (AT + 600, "is 600 s ahead of that of relay u, and clock_skew_s allows 30 s: starts are refused as START_"),
        (AT - 600, "is 600 s behind that of relay u"),
    ],
)
def test_the_clock(now: float, says: str) -> None:
    found = list(clock_notes("u", DATE, now, 30.0))
    assert bool(found) == bool(says)
    assert not says or says in found[0]


@pytest.mark.parametrize("date", [None, "", "yesterday", "Thu, 99 Jan 2026"])
def test_a_relay_that_gives_no_date(date: str | None) -> None:
    assert not list(clock_notes("u", date, AT, 30.0))
