"""A short slice of `make simulate`, its repeatability, and that it finds what was mended once the mending is undone."""

from __future__ import annotations

import pytest

from .episode import run_episode
from .mutants import MUTANTS

SLICE = range(1, 9)
MOST_SEEDS = 400
FOUND_BY = {
    "ends that name no process": (5, "turns away the running process"),
    "executed tasks reported as not begun": (69, "(The start was refused.) after 1 effects"),
    "two records of one user endpoint": (2, "has two records in the relay's memory"),
    "joined with a broken link": (47, "tasks do not end"),
    "no doubt about what waits again": (78, "(The start was refused.) after 1 effects"),
    "one of a set is held": (1, "for which it waits, has not run"),
}
"""The seed to begin with, near one that finds it, and words of the rule that is broken."""


@pytest.mark.parametrize("seed", SLICE)
def test_the_delivery_rules_hold(seed: int) -> None:
    outcome = run_episode(seed)
    assert not outcome.broken, "\n".join([*outcome.trace, outcome.broken, f"again: make simulate SEED={seed} STEPS=1"])
    assert outcome.tasks


def test_the_state_at_a_deadline_is_that_of_its_end() -> None:
    """In this run a task is sent between the moment in which it is found overdue and the one in which it ends."""
    assert not run_episode(75).broken


def test_a_seed_gives_the_same_run_again() -> None:
    one, other = run_episode(5), run_episode(5)
    assert (one.steps, one.tasks, one.ended, one.faults) == (other.steps, other.tasks, other.ended, other.faults)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_what_was_mended_is_found_without_the_mending(name: str) -> None:
    first, rule = FOUND_BY[name]
    found: list[str] = []
    for seed in range(first, first + MOST_SEEDS):
        broken = run_episode(seed, also=MUTANTS[name]()).broken
        found += [broken] if broken else []
        if rule in broken:
            return
    pytest.fail(f"not found in {MOST_SEEDS} episodes; found: {found[:5]}")
