"""The cost of the root side: its lines, imports and memory, printed; and that starts and stops leave nothing behind."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import mep.root.monitor
from mep.boundary.messages import EndpointEnded
from mep.boundary.resolved_config import Caps
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.waiting import until

STARTS = 1000
KEEPERS = 10
# Bounds that only a heavy import or a leak would exceed, on any machine. The share of the interpreter that other
# processes use, and with it the figures, differs from host to host. The figures are printed, and `make bench` measures
# them.
MONITOR_RSS_KB = 24_000
KEEPER_PSS_KB = 8_000


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=30)
    return set(done.stdout.split())


def test_root_imports_the_standard_library_and_the_boundary_only() -> None:
    imported = modules_after("import mep.root.monitor.main") - modules_after("pass")
    ours = {name for name in imported if name.split(".")[0] == "mep"}
    assert {name.split(".")[0] for name in imported - ours} <= sys.stdlib_module_names
    allowed = ("mep.root", "mep.boundary")
    assert {name for name in ours if name != "mep" and not name.startswith(allowed)} == set()
    # Big, or able to do things that the root side must not: threads, networks, other programs.
    assert not imported & {"asyncio", "subprocess", "multiprocessing", "threading", "ssl", "http", "pickle", "pathlib"}


def test_lines_of_code() -> None:
    root = pathlib.Path(mep.root.monitor.__file__).parent.parent
    counts = {str(path.relative_to(root)): len(path.read_text().splitlines()) for path in sorted(root.rglob("*.py"))}
    print(f"mep/root: {sum(counts.values())} lines in {len(counts)} files: {counts}")
    assert counts


def memory_kb(pid: int, key: str) -> int:
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise AssertionError(key)


def test_memory(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        keepers = [
            run.record(start_as(manager, mapper, alice.name, ref=ref)[0])["keeper_pid"] for ref in range(KEEPERS)
        ]
        rss = memory_kb(run.pid, "Rss")
        shares = sorted(memory_kb(pid, "Pss") for pid in keepers)
        private = sorted(memory_kb(pid, "Private_Dirty") for pid in keepers)
        share, own = shares[KEEPERS // 2], private[KEEPERS // 2]
        print(f"monitor RSS {rss} kB; each of {KEEPERS} keepers PSS {share} kB, of which its own {own} kB")
        assert rss < MONITOR_RSS_KB
        assert share < KEEPER_PSS_KB


def test_memory_of_pam(alice: LocalAccount) -> None:
    """Where PAM is enabled, each user endpoint has a process more, which holds its session."""
    site = Site()
    try:
        with pam_monitor(site) as (run, manager, mapper):
            ids = [start_as(manager, mapper, alice.name, ref=ref)[0] for ref in range(KEEPERS)]
            shares = {
                what: sorted(memory_kb(run.record(uep_id)[f"{what}_pid"], "Pss") for uep_id in ids)[KEEPERS // 2]
                for what in ("keeper", "pam")
            }
            print(f"with PAM: keeper PSS {shares['keeper']} kB, PAM process PSS {shares['pam']} kB")
            assert max(shares.values()) < KEEPER_PSS_KB
    finally:
        site.close()


def state_of(run: MonitorRun) -> tuple[int, list[str]]:
    children = pathlib.Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return len(os.listdir(f"/proc/{run.pid}/fd")), children


QUICK = "printf READY >&5\nprintf 'ENDED\\nIDLE\\n' >&5\n"
"""A user endpoint that is ready at once and has nothing to do: a start costs little beyond the measured work."""


def test_starts_and_stops_leave_nothing_behind(alice: LocalAccount) -> None:
    """A thousand: descriptors, memory, zombies and records are as halfway."""
    with running_monitor(caps=Caps(start_timeout_s=20, max_user_endpoints_per_user=STARTS)) as (run, manager, mapper):
        shell = run.root / "python"
        shell.write_text(shell.read_text().rpartition("exec")[0] + QUICK)
        before, memory = None, 0
        for ref in range(STARTS):
            uep_id, answer = start_as(manager, mapper, alice.name, ref=ref)
            assert answer.outcome == "started"
            assert manager.take(EndpointEnded)[0].uep_id == uep_id
            until("the record is gone", lambda uep_id=uep_id: not run.record(uep_id))
            if ref == STARTS // 2:
                before, memory = state_of(run), memory_kb(run.pid, "Rss")
        until("nothing more is open than halfway", lambda: state_of(run) == before)
        assert memory_kb(run.pid, "Rss") - memory < STARTS, "two kilobytes a start, for half of them"
        until("no keeper's directory is left", lambda: not list((run.run / "keepers").iterdir()))
