"""Drains and bans: what members put in force leaves room for the owner, and the file can always be read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mep.boundary.restrictions import (
    FILE,
    MAX_OF_MEMBER,
    MAX_OF_MEMBERS,
    MAX_RESTRICTIONS,
    Restriction,
    RestrictionKind,
    Restrictions,
)

MEMBER = os.geteuid() + 4000


@pytest.fixture
def restrictions(tmp_path: Path) -> Restrictions:
    tmp_path.chmod(0o700)
    return Restrictions(str(tmp_path))


def fill(restrictions: Restrictions, counts: dict[int, int], message: str = "") -> None:
    """Put bans in force, by uid, in one write."""
    made = [
        Restriction(RestrictionKind.BAN, f"a{uid}-{number}", -1, message, True, uid, 1.0)
        for uid, count in counts.items()
        for number in range(count)
    ]
    restrictions._replace(made)


def ban(restrictions: Restrictions, user: str, by_uid: int) -> None:
    restrictions.put(RestrictionKind.BAN, user, uid=-1, message="", refuse=True, by_uid=by_uid)


def test_one_member_has_a_share(restrictions: Restrictions) -> None:
    fill(restrictions, {MEMBER: MAX_OF_MEMBER})
    with pytest.raises(ValueError, match="of yours are in force already: take some back, or ask root"):
        ban(restrictions, "mallory", MEMBER)
    ban(restrictions, f"a{MEMBER}-0", MEMBER)  # another word about the same account
    ban(restrictions, "mallory", MEMBER + 1)
    ban(restrictions, "eve", 0)


def test_all_members_together_leave_room_for_the_owner(restrictions: Restrictions) -> None:
    members = MAX_OF_MEMBERS // MAX_OF_MEMBER
    fill(restrictions, {MEMBER + number: MAX_OF_MEMBER for number in range(members)})
    with pytest.raises(ValueError, match="members of the group have 700 drains and bans"):
        ban(restrictions, "mallory", MEMBER + members)
    ban(restrictions, "mallory", 0)
    ban(restrictions, "eve", os.geteuid())
    assert {"mallory", "eve"} <= {one.local_user for one in restrictions.all}


def test_the_owner_has_a_limit_too(restrictions: Restrictions) -> None:
    fill(restrictions, {0: MAX_RESTRICTIONS})
    with pytest.raises(ValueError, match="there are 1000 drains and bans already"):
        ban(restrictions, "mallory", 0)


@pytest.mark.parametrize("character", ["x", "é", "\U0001f6ab", "\x01", '"'])
def test_the_longest_messages_of_any_characters_can_be_read_again(
    restrictions: Restrictions, tmp_path: Path, character: str
) -> None:
    fill(restrictions, {0: MAX_RESTRICTIONS}, character * 512)
    assert (tmp_path / FILE).stat().st_size > 500_000
    assert len(Restrictions(str(tmp_path))) == MAX_RESTRICTIONS
