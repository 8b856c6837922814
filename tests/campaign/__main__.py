"""Faults on a real relay and endpoint, drawn from a seed: every task must end as its effects allow. Runs as root."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).resolve().parents[2]))  # last, so that the installed code is tested

from campus import SLURM, Campus, make_campus
from injections import FAULTS, STARTS, kill_in_start, possible
from processes import by_kind
from sitekit import ledger
from sitekit.daemon import stop_on_signals
from soak import soak
from work import Submitted, Work

from mep_sdk import Executor
from tests.support import clocks

ENDS_WITHIN_S = 180.0
ENGINES = ("ProcessPoolEngine", "GlobusComputeEngine")
TWO_AT_ONCE = 0.2
IN_START = 0.25


@dataclass(slots=True)
class Row:
    """One kind of fault."""

    fault: str
    times: int = 0
    tasks: int = 0
    lost: int = 0
    broken: int = 0
    recovery_s: list[float] = field(default_factory=list)


class Campaign:
    """Rounds of faults at one place."""

    def __init__(self, campus: Campus, seed: int, only: str) -> None:
        self.campus, self.rng = campus, random.Random(seed)
        self.work = Work(campus.effects, random.Random(seed + 1))
        self.rows: dict[str, Row] = {}
        self.broken: list[str] = []
        self.ends: Counter[str] = Counter()
        self.texts: dict[str, str] = {}
        self.rounds = 0
        self.last = ""
        """What the last round did."""
        self._faults = possible(only)
        self._starts = [name for name in STARTS if only in f"{name} killed in a start"]
        self._fixed = [(campus.executor("fixed", engine, n), n) for engine in ENGINES for n in (1, 3)]
        self._in_jobs = [(campus.executor("jobs", SLURM, n), n) for n in (1, 3)] if campus.slurm is not None else []

    def round(self) -> None:
        """One fault, or two at once, while tasks run."""
        self.rounds += 1
        in_start = self._starts and (not self._faults or self.rng.random() < IN_START)
        names, tasks, executors = self._in_start() if in_start else self._while_running()
        begun = time.monotonic()
        probes = [self.work.submit(executor, attempts, 0.0) for executor, attempts in executors]
        with contextlib.suppress(TimeoutError):
            for _ in as_completed([probe.future for probe in probes], timeout=ENDS_WITHIN_S):
                continue
        recovery_s = time.monotonic() - begun
        verdict = self.work.judge([*tasks, *probes], ENDS_WITHIN_S)
        self.ends += verdict.ends
        self.texts = {f"{code} in {' + '.join(names)}": text for code, text in verdict.texts.items()} | self.texts
        row = self.rows.setdefault(" + ".join(names), Row(" + ".join(names)))
        self.last = f"{row.fault}, {recovery_s:.1f} s"
        row.times += 1
        row.tasks += len(tasks) + len(probes)
        row.lost += sum(count for code, count in verdict.ends.items() if code != "success")
        row.broken += len(verdict.broken)
        row.recovery_s.append(recovery_s)
        self.broken += [f"round {self.rounds}, {row.fault}: {wrong}" for wrong in verdict.broken]

    def _while_running(self) -> tuple[list[str], list[Submitted], list[tuple[Executor, int]]]:
        names = [self.rng.choice(self._faults) for _ in range(2 if self.rng.random() < TWO_AT_ONCE else 1)]
        executors = self._in_jobs if any(SLURM in name for name in names) else self._fixed
        tasks = [self.work.submit(executor, attempts) for executor, attempts in executors for _ in range(6)]
        self.work.wait_for_effects(tasks, self.rng.randint(0, 4))
        time.sleep(self.rng.uniform(0.0, 0.3))
        for name in names:
            FAULTS[name](self.campus, self.rng)
        return names, tasks, executors

    def _in_start(self) -> tuple[list[str], list[Submitted], list[tuple[Executor, int]]]:
        kind = self.rng.choice(self._starts)
        before = {pid for pids in by_kind(self.campus.endpoint.status()).values() for pid in pids}
        engine = ENGINES[1] if kind in ("interchange", "block's pool") else ENGINES[0]
        attempts = self.rng.choice([1, 3])
        executor = self.campus.executor(f"start-{self.rounds}", engine, attempts, idle=1)
        tasks = [self.work.submit(executor, attempts) for _ in range(4)]
        found = kill_in_start(self.campus, kind, before)
        name = f"{kind} killed in a start" if found else f"{kind} not seen in a start"
        return [name], tasks, [(executor, attempts)]

    def finish(self) -> None:
        """Stop the endpoint, and look for what is left."""
        for executor, _ in [*self._fixed, *self._in_jobs]:
            executor.shutdown(wait=False, cancel_futures=True)
        self.campus.endpoint.stop()
        self.broken += [f"left behind: {what}" for what in self.campus.left()]

    def table(self) -> str:
        """Return the rows as plain text."""
        lines = [f"{'fault':58}{'times':>6}{'tasks':>7}{'lost':>6}{'broken':>8}{'recovery, median':>18}{'longest':>9}"]
        for row in sorted(self.rows.values(), key=lambda one: one.fault):
            middle, longest = statistics.median(row.recovery_s), max(row.recovery_s)
            times = f"{middle:>16.1f} s{longest:>7.1f} s"
            lines.append(f"{row.fault[:57]:58}{row.times:>6}{row.tasks:>7}{row.lost:>6}{row.broken:>8}{times}")
        return "\n".join(lines)


def campaign(seed: int, seconds: float, folder: Path | None, only: str = "", rounds: int = 0) -> Campaign:
    """Run rounds for so many seconds, or so many rounds."""
    names = possible(only)
    jobs = any(SLURM in name for name in names)
    if not names and not any(only in f"{kind} killed in a start" for kind in STARTS):
        raise SystemExit(
            f"make faults: no fault with {only!r} in its name can be had here; there are: {', '.join(FAULTS)}"
        )
    with make_campus(jobs=jobs, clocks=folder) as campus:
        made = Campaign(campus, seed, only)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and (not rounds or made.rounds < rounds):
            made.round()
            print(f"round {made.rounds}: {made.last}; {len(made.broken)} broken", file=sys.stderr, flush=True)
        made.finish()
        if made.broken:
            print(campus.site.logs(), file=sys.stderr)
    return made


def main() -> int:
    """Return 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rounds", type=int, default=0, help="at most so many")
    parser.add_argument("--only", default="", help="faults with this in their name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of load without faults, in place of them")
    options = parser.parse_args()
    stop_on_signals()
    ledger.sweep()
    if options.soak:
        return soak(options.soak, as_json=options.json)
    folder = clocks.begin(needed=any("clock" in name for name in possible(options.only)))
    try:
        made = campaign(options.seed, options.seconds, folder, options.only, options.rounds)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        rows = [asdict(row) for row in made.rows.values()]
        print(json.dumps({"seed": options.seed, "rows": rows, "ends": made.ends, "broken": made.broken}, indent=2))
    else:
        print(made.table())
        print("ends: " + ", ".join(f"{code} {count}" for code, count in made.ends.most_common()))
        for where, text in sorted(made.texts.items()):
            print(f"{where}: {text}")
        for wrong in made.broken:
            print(f"BROKEN: {wrong}")
        if made.broken:
            print(f"again: make faults SEED={options.seed}")
    return bool(made.broken)


if __name__ == "__main__":
    sys.exit(main())
