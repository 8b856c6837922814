"""The memory of processes, read from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path


def _parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_bytes()
                found[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])
    return found


def descendants(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    parents = _parents()
    tree = [pid]
    for member in tree:
        tree += [child for child, parent in parents.items() if parent == member]
    return tree


def pss_mb(pids: list[int]) -> float:
    """Return the proportional set size of these processes together, in MB (10**6 bytes)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total * 1024 / 1e6


def rss_mb(pid: int) -> float:
    """Return the resident set size of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def pythons() -> int:
    """Return the number of running Python processes: they share pages, so PSS depends on it."""
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and "python" in (entry / "exe").readlink().name:
                count += 1
    return count
