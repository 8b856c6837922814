"""A long load without faults: memory, descriptors, the log of the relay's database and the rate, every 10 s.

A line is fitted through each series. Its slope per hour stands beside its standard error: a slope within two of them
is none that can be told from zero. The first half is left out, since caches fill: the relay's take 200,000 tasks.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

from campus import Campus, make_campus
from processes import by_kind, descriptors, resident_mb

EVERY_S = 10.0
AT_ONCE = 200
RESULT_S = 120.0
DISK_MB = 4096
"""The relay keeps a record of 200 bytes for each ended task: a million each five minutes."""


def nothing(number: int) -> int:
    """Return the argument."""
    return number


def _sample(campus: Campus) -> dict[str, float]:
    found: dict[str, float] = {}
    groups = {"relay": [campus.site.relay.pid], **by_kind(campus.endpoint.status())}
    for kind, pids in groups.items():
        with contextlib.suppress(OSError):
            if pids:
                found[f"{kind}, MB"] = round(sum(map(resident_mb, pids)), 2)
                found[f"{kind}, descriptors"] = sum(map(descriptors, pids))
    log = Path(campus.site.relay.state)
    found["WAL, MB"] = round(sum(file.stat().st_size for file in log.glob("*-wal")) / 1e6, 2)
    return found


def slope(times: list[float], values: list[float]) -> tuple[float, float]:
    """Return the slope of the line of least squares and its standard error, per unit of time."""
    count = len(times)
    if count < 3:
        return 0.0, float("inf")
    middle_t, middle_v = sum(times) / count, sum(values) / count
    spread = sum((t - middle_t) ** 2 for t in times)
    found = sum((t - middle_t) * (v - middle_v) for t, v in zip(times, values, strict=True)) / spread
    rest = sum((v - middle_v - found * (t - middle_t)) ** 2 for t, v in zip(times, values, strict=True))
    return found, (rest / (count - 2) / spread) ** 0.5


def soak(seconds: float, *, as_json: bool) -> int:
    """Print a line every 10 s, and the slopes at the end."""
    times: list[float] = []
    series: dict[str, list[float]] = {}
    with make_campus("soak", disk_mb=DISK_MB) as campus:
        executors = [campus.executor("soak", engine, 1) for engine in ("ProcessPoolEngine", "GlobusComputeEngine")]
        begun = time.monotonic()
        sampled, done = begun, 0
        while time.monotonic() < begun + seconds:
            for future in [executor.submit(nothing, number) for executor in executors for number in range(AT_ONCE)]:
                future.result(timeout=RESULT_S)
                done += 1
            now = time.monotonic()
            if now >= sampled + EVERY_S:
                sample = _sample(campus) | {"tasks per s": round(done / (now - sampled), 1)}
                sampled, done = now, 0
                times.append((now - begun) / 3600)
                for name, value in sample.items():
                    series.setdefault(name, []).append(value)
                print(f"{now - begun:7.0f} s  " + "  ".join(f"{k} {v:g}" for k, v in sample.items()), flush=True)
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
    slopes = {}
    for name, values in series.items():
        kept = values[len(values) // 2 :]
        slopes[name] = slope(times[-len(kept) :], kept)
    if as_json:
        print(json.dumps({name: {"per_hour": s, "error": e} for name, (s, e) in slopes.items()}))
    for name, (found, error) in slopes.items() if not as_json else ():
        note = "" if abs(found) <= 2 * error else "  beyond two errors"
        print(f"{name:32}{found:>12.3f} per hour, error {error:.3f}{note}")
    sys.stdout.flush()
    return 0
