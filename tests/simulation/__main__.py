"""`make simulate`: episodes from SEED on until STEPS steps are run. The first one that breaks a rule is shown."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .episode import STEPS, run_episode
from .mutants import MUTANTS


def main() -> int:
    """Return 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first episode's")
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many in all, at least")
    parser.add_argument("--length", type=int, default=STEPS, help="steps of an episode before its quiet time")
    parser.add_argument("--go-on", action="store_true", help="go on after a broken rule, and list them")
    parser.add_argument("--whole", action="store_true", help="show all that happened in a failing episode")
    parser.add_argument("--mutant", choices=MUTANTS, help="take a fix back")
    options = parser.parse_args()
    also = MUTANTS[options.mutant] if options.mutant else list
    begun, steps, tasks, seed = time.monotonic(), 0, 0, options.seed
    ended: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    broken = 0
    while steps < options.steps:
        outcome = run_episode(seed, options.length, also(), whole=options.whole)
        steps += outcome.steps
        tasks += outcome.tasks
        ended += outcome.ended
        faults += outcome.faults
        if outcome.broken:
            broken += 1
            if not options.go_on:
                print("\n".join(outcome.trace))
            print(f"seed {seed}: {outcome.broken}")
            if not options.go_on:
                print(f"again: make simulate SEED={seed} STEPS=1")
                return 1
        seed += 1
    seconds = time.monotonic() - begun
    print(f"{seed - options.seed} episodes, {steps} steps, {tasks} tasks in {seconds:.1f} s; {broken} broke a rule")
    print("ends:   " + ", ".join(f"{name} {count}" for name, count in ended.most_common()))
    print("faults: " + ", ".join(f"{name} {count}" for name, count in faults.most_common()))
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
