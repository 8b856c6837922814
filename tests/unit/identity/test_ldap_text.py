"""Which values are looked up in a directory: those that it cannot take for another person's."""

from __future__ import annotations

import pytest

from identity.ldap import filter_values


@pytest.mark.parametrize("value", ["alice@example.edu", "Alice O'Hara", "José Núñez", "Ωmega", "李明", "a+b=c*(d)"])
def test_fit(value: str) -> None:
    assert filter_values.unfit(value) is None


@pytest.mark.parametrize(
    "dropped",
    ["\u00ad", "\u034f", "\u1806", "\u180b", "\u200b", "\u200d", "\ufe0f", "\ufeff", "\ufffc", "\0"],
)
def test_what_a_directory_drops(dropped: str) -> None:
    assert filter_values.unfit(f"ali{dropped}ce@example.edu") == "it has invisible characters"


@pytest.mark.parametrize("folded", ["\u0131", "\u0130", "\u017f", "\u212a", "\ufb01", "\u00df", "\uff41", "\u03c2"])
def test_what_a_directory_takes_for_another_letter(folded: str) -> None:
    assert filter_values.unfit(f"a{folded}b@example.edu") == "it has letters that a directory takes for others"


@pytest.mark.parametrize("value", ["", " alice", "alice ", "a  b"])
def test_emptiness_and_spaces(value: str) -> None:
    assert filter_values.unfit(value)
