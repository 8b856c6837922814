"""Filling {field} and {0}, once."""

from __future__ import annotations

import pytest

from identity.template import Missing, Template, TemplateInvalid

IDENTITY = {"username": "alice", "email": "{username}", "odd": "{0}\\{0}"}


@pytest.mark.parametrize(
    ("text", "groups", "filled"),
    [
        ("{username}", (), "alice"),
        ("x{username}-{username}y", (), "xalice-alicey"),
        ("{email}{username}", (), "{username}alice"),
        ("{odd}{0}", ("g",), "{0}\\{0}g"),
        ("{0}{1}{0}", ("{1}", "b"), "{1}b{1}"),
        ("{00}{1}", ("a", "b"), "ab"),
        ("plain", (), "plain"),
        ("", (), ""),
        ("{open", (), "{open"),
        ("close}", (), "close}"),
        (r"\{username}", (), r"\{username}"),
        (r"\\{username}", (), r"\\alice"),
        (r"\\\{username}", (), r"\\\{username}"),
        ("{username}}", (), "alice}"),
    ],
)
def test_filling(text: str, groups: tuple[str, ...], filled: str) -> None:
    assert Template(text, len(groups)).fill(IDENTITY, groups) == filled


@pytest.mark.parametrize(
    "text", ["{}", "{ username}", "{a{b}", "{-1}", "{+1}", "{1_0}", "{2}", "{12345}", "{é}", "{a b}", "{\u0661}"]
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(TemplateInvalid):
        Template(text, groups=2)


def test_a_field_that_is_absent() -> None:
    with pytest.raises(Missing, match="no field nickname"):
        Template("{username}{nickname}").fill(IDENTITY)


def test_escaping_touches_values_alone() -> None:
    assert Template("(a={email})").fill(IDENTITY, escape=lambda value: value.upper()) == "(a={USERNAME})"


def test_fields_are_listed_once_in_order() -> None:
    assert Template("{b}{a}{0}{b}", groups=1).fields == ("b", "a")
