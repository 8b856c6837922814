"""Texts that are made up for a schema's pattern: they fit it, they are the same each time, and the work has an end."""

from __future__ import annotations

import re
import signal
from typing import Any

import pytest

from user_endpoint.render.pattern_texts import MAX_CHARACTERS, MAX_MADE, texts_for


@pytest.mark.parametrize(
    ("pattern", "limits"),
    [
        ("^[A-Za-z0-9][A-Za-z0-9_.-]*$", {"maxLength": 32}),
        ("^[a-z]+$", {"minLength": 12, "maxLength": 15}),
        ("^(0[0-9]|1[0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]$", {}),
        ("^[0-9]{2}:[0-5][0-9]:[0-5][0-9]$", {}),
        ("^(short|long|debug)$", {}),
        ("gpu", {}),
        (r"^\d{120}$", {}),
        (r"^[^\s:]+:[^\s:]+$", {}),
        (r"^(\w+)-\1$", {}),
        (".*", {}),
        ("^$", {}),
        ("^.{0,4}$", {"minLength": 4}),
        ("(?i)^[a-f]{8}$", {}),
    ],
)
def test_texts_fit_the_pattern_and_the_lengths(pattern: str, limits: dict[str, Any]) -> None:
    made = texts_for(pattern, limits)
    assert made
    assert len(made) == len(set(made)) <= MAX_MADE
    for text in made:
        assert re.search(pattern, text), text
        assert limits.get("minLength", 0) <= len(text) <= limits.get("maxLength", MAX_CHARACTERS)
        assert text.isprintable()
    assert texts_for(pattern, limits) == made


def test_the_shortest_text_comes_first_and_a_long_one_next() -> None:
    made = texts_for("^[a-z]+$", {"maxLength": 20})
    assert len(made[0]) == 1
    assert len(made[1]) > 10


@pytest.mark.parametrize(
    ("pattern", "limits"),
    [
        ("^(?!a)a$", {}),  # nothing fits it
        ("^[a-z]{4}$", {"minLength": 5}),
        ("^(a(b)?c){5000}$", {}),  # too long
    ],
)
def test_no_text_is_made_where_none_fits(pattern: str, limits: dict[str, Any]) -> None:
    assert texts_for(pattern, limits) == []


@pytest.mark.parametrize(
    "pattern", ["^((((a{90}){90}){90}){90}){90}$", "^(?=.*b)(x+x+)+y$|^(z+z+)+(?!.)q$", "a{60000000}"]
)
def test_a_pattern_that_asks_for_endless_work_is_given_up(pattern: str) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    texts_for(pattern, {})
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
