"""Finds every kind of process of a running endpoint by the process table alone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

KINDS = (
    "monitor",
    "manager",
    "mapper",
    "keeper",
    "PAM process",
    "user endpoint",
    "fork server",
    "worker",
    "interchange",
    "block's pool",
    "block's worker",
)


@dataclass(frozen=True, slots=True)
class Process:
    """One row of the table."""

    pid: int
    parent: int
    uid: int
    words: str


def table() -> dict[int, Process]:
    """Return every process by pid."""
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int(Path("/proc", entry, "stat").read_bytes().rpartition(b")")[2].split()[1])
                found[int(entry)] = Process(int(entry), parent, os.stat(f"/proc/{entry}").st_uid, words)
    return found


def by_kind(monitor: int) -> dict[str, list[int]]:
    """Return the pids below a monitor by kind."""
    processes = table()
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for pid in _below(processes, monitor):
        kind = _kind(processes, pid, monitor)
        if kind:
            found[kind].append(pid)
    if monitor in processes:
        found["monitor"].append(monitor)
    return found


def _below(processes: dict[int, Process], top: int) -> list[int]:
    below, layer = [], {top}
    while layer:
        layer = {pid for pid, process in processes.items() if process.parent in layer}
        below += sorted(layer)
    return below


def _kind(processes: dict[int, Process], pid: int, monitor: int) -> str:
    own = processes[pid]
    above = processes.get(own.parent, Process(0, 0, 0, ""))
    if "mep.manager" in own.words or "mep.mapper" in own.words:
        return "manager" if "mep.manager" in own.words else "mapper"
    if "interchange_main" in own.words:
        return "interchange"
    if "worker_pool_main" in own.words and "bash" not in own.words:
        return "block's worker" if "worker_pool_main" in above.words and "bash" not in above.words else "block's pool"
    if "user_endpoint/__main__" in own.words:
        if "user_endpoint/__main__" not in above.words:
            return "user endpoint"
        top = processes.get(above.parent, above)
        return "worker" if "user_endpoint/__main__" in top.words else "fork server"
    if own.uid == 0 and own.parent == monitor:
        return "keeper"
    return "PAM process" if own.uid == 0 and above.parent == monitor else ""


def of_account(uid: int) -> list[int]:
    """Return the processes of an account."""
    return [pid for pid, process in table().items() if process.uid == uid]


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
