"""`make bench`: the work of the design's goals on MEP, bare Parsl and ssh, in one run, side by side.

It reports times but never fails a run because of them. Compare ratios of one run: absolute numbers depend on the
machine. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import identity_mapping
import ssh
from memory import pythons
from ours import Bench
from rich.console import Console
from rows import Row, table
from sitekit import ledger
from sitekit.daemon import stop_on_signals
from sitekit.errors import SiteError
from sitekit.site import Site

from mep_wire.errors import MepError

HTEX_TASKS, TASKS, SINGLES = 3_000, 30_000, 300
DATA_TASKS, DATA_BYTES = 100, 50_000_000


def bare_parsl() -> dict[str, float]:
    """Run benchmarks/bare_parsl.py in a process of its own and return its measurements."""
    script = Path(__file__).with_name("bare_parsl.py")
    env = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}  # Parsl starts its parts by name
    argv = [sys.executable, str(script), str(HTEX_TASKS), str(SINGLES)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise SiteError(f"bare Parsl did not run:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _first_results(bench: Bench, site: Site, parsl: dict[str, float]) -> Iterator[Row]:
    ours = bench.first_result_s("processes", repeat=7)
    theirs = ssh.first_result_s(site, bench.account, pam=False) if ssh.available() else None
    note = "" if theirs else "no ssh server is installed"
    work = "first result, nothing running, process engine"
    yield Row(work, "s", ours, "ssh", theirs, goal_ratio=0.5, note=note)
    ours = bench.first_result_s("htex", repeat=3)
    yield Row("first result, nothing running, HTEX", "s", ours, "Parsl", parsl["first_s"], goal=0.8)


def _warm(bench: Bench, site: Site, parsl: dict[str, float]) -> Iterator[Row]:
    singles, rate = bench.warm_and_rate("processes", singles=SINGLES, tasks=TASKS)
    htex_singles, htex_rate = bench.warm_and_rate("htex", singles=SINGLES, tasks=HTEX_TASKS)
    warm = "warm round trip, median, "
    yield Row(warm + "process engine", "ms", singles * 1e3, "bare HTEX", parsl["warm_s"] * 1e3, goal=2)
    yield Row(warm + "HTEX", "ms", htex_singles * 1e3, "bare HTEX", parsl["warm_s"] * 1e3, goal=3)
    theirs = parsl["tasks_per_s"]
    work = "no-op tasks through the durable relay, "
    yield Row(work + "process engine", "per s", rate, "bare HTEX", theirs, goal=15_000, more_is_better=True)
    yield Row(work + "HTEX", "per s", htex_rate, "bare HTEX", theirs, goal_ratio=1.3, more_is_better=True)


def _data(bench: Bench, site: Site, parsl: dict[str, float]) -> Iterator[Row]:
    sent_mb, taken_s = bench.shared_data(DATA_TASKS, DATA_BYTES)
    work = f"{DATA_TASKS} tasks with the same {DATA_BYTES / 1e6:.0f} MB, "
    yield Row(work + "sent to the relay", "MB", sent_mb, goal=DATA_BYTES / 1e6)
    yield Row(work + "from the first submit to the last result", "s", taken_s)


def _memory(bench: Bench, site: Site, parsl: dict[str, float]) -> Iterator[Row]:
    work = "memory of an idle user endpoint (PSS), "
    yield Row(work + "process engine", "MB", bench.idle_pss_mb("processes"), goal=20)
    yield Row(work + "HTEX without a block", "MB", bench.idle_pss_mb("htex"), goal=80)
    yield Row("the monitor's resident memory", "MB", bench.monitor_rss_mb(), goal=15)


def _queued(count: int) -> Callable[[Bench, Site, dict[str, float]], Iterator[Row]]:
    def rows(bench: Bench, site: Site, parsl: dict[str, float]) -> Iterator[Row]:
        slower, rate, grown = bench.queued(count)
        note = f"{rate:,.0f} per s at the end"
        yield Row(f"submission slowed by {count:,} queued tasks", "%", slower, goal=10, note=note)
        yield Row(f"the relay's growth with {count:,} queued tasks", "MB", grown)

    return rows


def _store_depth() -> Iterator[Row]:
    """Run benchmarks/store_depth.py, with the tools' Python, which has the driver of PostgreSQL."""
    script = Path(__file__).with_name("store_depth.py")
    argv = [f"{sys.prefix}-tests/bin/python", str(script), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SiteError(f"the store's benchmark did not run:\n{done.stderr}")
    found = json.loads(done.stdout)
    for kind in ("sqlite", "postgresql"):
        for what in ("submit", "take", "end"):
            work = f"{what} one task in the store, 1,000,000 queued, {kind}"
            if kind not in found:
                yield Row(work, "ms", None, note="no PostgreSQL server is installed")
                continue
            empty, deep = found[kind][what]
            yield Row(work, "ms", deep, "empty queue", empty, goal_ratio=1.1)


def measure(console: Console, queued: int) -> list[Row]:
    """Return every row, and print each measurement's name on `console` before it begins."""
    console.print("identity mapping ...")
    rows = list(identity_mapping.rows())
    console.print("the stores with long queues ...")
    rows += _store_depth()
    console.print("bare Parsl ...")
    parsl = bare_parsl()
    with Site("mepbench") as site:
        console.print("starting a relay and an endpoint ...")
        bench = Bench(site)
        for part in (_first_results, _warm, _data, _memory, _queued(queued)):
            for row in part(bench, site, parsl):
                console.print(f"  {row.work}")
                rows.append(row)
    return rows


def main() -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--queued", type=int, default=100_000, help="tasks to queue for a stopped endpoint")
    options = parser.parse_args()
    progress = Console(stderr=True, highlight=False)
    stop_on_signals()
    surroundings = {"cores": os.cpu_count(), "other_pythons": pythons() - 1, "python": sys.version.split()[0]}
    try:
        ledger.sweep()
        rows = measure(progress, options.queued)
    except (SiteError, MepError, TimeoutError) as error:
        progress.print(f"the benchmark failed: {error or type(error).__name__}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        progress.print("interrupted; everything was stopped and removed")
        return 130
    if options.json:
        values = [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in rows]
        print(json.dumps(surroundings | {"rows": values}, indent=2))
        return 0
    console = Console(highlight=False, width=max(Console().width, 190))
    console.print(table(rows))
    console.print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in surroundings.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
