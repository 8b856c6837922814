"""When the manager has people re-checked: spread over the interval, at a pace, few at once."""

from __future__ import annotations

import itertools
import random

from mep.manager.recheck_schedule import ANSWER_S, MAX_UNDER_WAY, PACE_S, SOON_S, RecheckSchedule


def run(rechecks: RecheckSchedule, start: float, end: float, *, said: bool = True) -> list[tuple[float, str]]:
    """Let time pass, answering at once; return each request with its time."""
    asked, now = [], start
    while (now := max(now, rechecks.next_at())) < end:
        for uep_id in rechecks.take(now):
            asked.append((now, uep_id))
            rechecks.answered(uep_id, now, said=said)
    return asked


def many(count: int, interval_s: float = 300.0) -> RecheckSchedule:
    rechecks = RecheckSchedule(interval_s, random.Random(1).random)
    for number in range(count):
        rechecks.add(f"uep-{number}", 0.0)
    return rechecks


def test_each_is_asked_for_once_an_interval() -> None:
    asked = run(many(10), 0.0, 3000.0)
    for number in range(10):
        times = [at for at, uep_id in asked if uep_id == f"uep-{number}"]
        assert 9 <= len(times) <= 11
        assert all(265 <= after - before <= 335 for before, after in itertools.pairwise(times))


def test_a_thousand_that_were_started_together_are_no_burst() -> None:
    asked = [at for at, _ in run(many(1000), 0.0, 1000.0)]
    busiest = max(sum(at <= one < at + 1 for one in asked) for at in asked)
    assert len(asked) >= 2000
    assert busiest <= 1 / PACE_S + 1


def test_all_at_once_go_at_the_pace_and_everything_goes() -> None:
    rechecks = many(1000)
    rechecks.all_now(10.0)
    asked = run(rechecks, 10.0, 10.0 + 1000 * PACE_S + 1)
    assert len({uep_id for _, uep_id in asked}) == 1000
    assert all(after - before >= PACE_S * 0.99 for (before, _), (after, _) in itertools.pairwise(asked))


def test_few_are_under_way_and_one_without_an_answer_gives_its_place_back() -> None:
    rechecks = many(100)
    rechecks.all_now(0.0)
    now, taken = 0.0, []
    for _ in range(100):
        taken += rechecks.take(now)
        now += PACE_S
    assert len(taken) == MAX_UNDER_WAY
    assert rechecks.next_at() == ANSWER_S
    assert rechecks.take(ANSWER_S + 1)


def test_one_of_which_nothing_could_be_said_is_asked_for_again_soon() -> None:
    rechecks = many(1)
    rechecks.all_now(0.0)
    asked = run(rechecks, 0.0, 5 * SOON_S, said=False)
    assert 5 <= len(asked) <= 11


def test_a_lost_link_makes_the_unanswered_due_again() -> None:
    rechecks = many(1)
    rechecks.all_now(0.0)
    assert rechecks.take(0.0) == ["uep-0"]
    assert rechecks.next_at() > 200
    rechecks.link_lost()
    assert rechecks.take(1.0) == ["uep-0"]


def test_one_that_has_ended_is_asked_for_no_more() -> None:
    rechecks = many(1)
    rechecks.all_now(0.0)
    rechecks.remove("uep-0")
    assert rechecks.next_at() == float("inf")
    rechecks.answered("uep-0", 1.0, said=False)
    assert rechecks.take(1000.0) == []


def test_off_is_off() -> None:
    rechecks = many(3, interval_s=0.0)
    rechecks.all_now(0.0)
    assert rechecks.next_at() == float("inf")
