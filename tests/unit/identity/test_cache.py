"""Which answers are cached, for how long, and which one counts when look-ups overlap."""

from __future__ import annotations

import pytest

from identity.answer_cache import AnswerCache


class Clock:
    """Seconds that the test counts."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_kind_of_answer_has_its_lifetime(clock: Clock) -> None:
    cache = AnswerCache[str](300, 30, clock)
    cache.put("alice", "al", clock.now)
    cache.put("mallory", None, clock.now)
    clock.now += 29.9
    assert (cache.get("alice"), cache.get("mallory")) == ((True, "al"), (True, None))
    clock.now += 0.1
    assert (cache.get("alice"), cache.get("mallory")) == ((True, "al"), (False, None))
    clock.now += 270
    assert cache.get("alice") == (False, None)


@pytest.mark.parametrize(("found_s", "not_found_s"), [(0, 30), (300, 0)])
def test_no_lifetime_keeps_nothing(clock: Clock, found_s: float, not_found_s: float) -> None:
    cache = AnswerCache[str](found_s, not_found_s, clock)
    cache.put("alice", "al", clock.now)
    cache.put("mallory", None, clock.now)
    assert [cache.get("alice")[0], cache.get("mallory")[0]] == [found_s > 0, not_found_s > 0]


def test_a_look_up_that_began_earlier_does_not_undo_what_a_later_one_found(clock: Clock) -> None:
    cache = AnswerCache[str](300, 30, clock)
    slow = clock.now
    clock.now += 1
    cache.put("alice", None, clock.now)
    cache.put("alice", "al", slow)
    assert cache.get("alice") == (True, None)
    cache.drop("alice", clock.now)
    cache.put("alice", "al", slow)
    assert cache.get("alice") == (False, None)
    clock.now += 1
    cache.put("alice", "al", clock.now)
    assert cache.get("alice") == (True, "al")


def test_the_oldest_makes_room(clock: Clock) -> None:
    cache = AnswerCache[str](300, 30, clock, max_entries=2)
    for name in ("a", "b", "a", "c"):
        cache.put(name, name, clock.now)
    assert [name for name in ("a", "b", "c") if cache.get(name)[0]] == ["a", "c"]
