"""Finds every kind of process of a running endpoint by the process table alone."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def by_kind(status: dict[str, Any]) -> dict[str, list[int]]:
    """Return the pids of an endpoint's processes by kind, from the monitor's status: it has adopted some keepers."""
    processes = table()
    monitor = int(status.get("pid", 0))
    ueps = [int(each["pid"]) for each in status.get("user_endpoints", [])]
    keepers = {processes[pid].parent for pid in ueps if pid in processes} - {1}
    keepers |= {pid for pid, one in processes.items() if one.parent == monitor and one.uid == 0}
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    found["keeper"] = sorted(keepers)
    for pid in _below(processes, {monitor} | keepers) - keepers:
        if kind := _kind(processes, pid, keepers):
            found[kind].append(pid)
    if monitor in processes:
        found["monitor"].append(monitor)
    return {kind: sorted(pids) for kind, pids in found.items()}


def _below(processes: dict[int, Process], layer: set[int]) -> set[int]:
    below: set[int] = set()
    while layer:
        layer = {pid for pid, process in processes.items() if process.parent in layer} - below
        below |= layer
    return below


def _kind(processes: dict[int, Process], pid: int, keepers: set[int]) -> str:
    own = processes[pid]
    above = processes.get(own.parent, Process(0, 0, 0, ""))
    if "mep.manager" in own.words or "mep.mapper" in own.words:
        return "manager" if "mep.manager" in own.words else "mapper"
    if "interchange_main" in own.words:
        return "interchange"
    if "worker_pool_main" in own.words and "bash" not in own.words:
        return "block's worker" if "worker_pool_main" in above.words and "bash" not in above.words else "block's pool"
    for title, kind in (("mep.worker:", "worker"), ("mep.forkserver:", "fork server"), ("mep.user_", "user endpoint")):
        if title in own.words:
            return kind
    if "user_endpoint/__main__" in own.words:  # not named yet
        if "user_endpoint" not in above.words and "mep.forkserver" not in above.words:
            return "user endpoint"
        top = processes.get(above.parent, above)
        return "worker" if "user_endpoint" in top.words else "fork server"
    return "PAM process" if own.uid == 0 and own.parent in keepers else ""


def of_account(uid: int) -> list[Process]:
    """Return the processes of an account, without dead ones that wait for a slow init: they have no words."""
    return [process for process in table().values() if process.uid == uid and process.words]


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mb(pid: int) -> float:
    """Return the memory that a process has for itself, without files that it maps."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0
