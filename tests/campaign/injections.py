"""The faults. Each takes the place and the generator, does its harm, undoes what can be undone, and returns."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from campus import SLURM, Campus
from processes import KINDS, by_kind, descriptors

from tests.support.clocks import CLOCKS, Clock
from tests.support.slurm import SlurmFailed

Fault = Callable[[Campus, random.Random], None]
START_WATCHED_S = 5.0
WITH_A_STEP = ("links cut", "relay killed", "manager killed", "mapper killed", "user endpoint killed")
"""One of them follows the step of a clock: a start is signed and mapped, or a link made, by clocks that differ."""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _killed(kind: str) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        found = by_kind(campus.endpoint.status())[kind]
        if found:
            _kill(rng.choice(found))
        if kind == "monitor":
            campus.endpoint.kill()
            campus.endpoint.start()

    return fault


def _relay_killed(campus: Campus, rng: random.Random) -> None:
    campus.site.relay.kill()
    time.sleep(rng.uniform(0.0, 3.0))
    campus.site.relay.start()


def _stopped(campus: Campus, pid: int, rng: random.Random) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(1.0, 6.0))
        os.kill(pid, signal.SIGCONT)


def _frozen(kind: str) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        found = [campus.site.relay.pid] if kind == "relay" else by_kind(campus.endpoint.status())[kind]
        if found:
            _stopped(campus, rng.choice(found), rng)

    return fault


def _links_cut(campus: Campus, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 3)):
        campus.proxy.cut()
        time.sleep(rng.uniform(0.0, 1.0))


def _links_frozen(campus: Campus, rng: random.Random) -> None:
    campus.proxy.flows.clear()
    time.sleep(rng.uniform(1.0, 8.0))
    campus.proxy.flows.set()


def _full(which: int) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        file = Path(campus.disks[which], "filled")
        with contextlib.suppress(OSError), file.open("wb", buffering=0) as filling:
            while True:
                filling.write(bytes(65536))
        time.sleep(rng.uniform(0.5, 5.0))
        file.unlink(missing_ok=True)

    return fault


def _no_descriptors(kind: str) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        found = [campus.site.relay.pid] if kind == "relay" else by_kind(campus.endpoint.status())[kind]
        if not found:
            return
        pid = rng.choice(found)
        with contextlib.suppress(OSError):
            before = _soft_limit(pid, "Max open files")
            _limit(pid, descriptors(pid) + rng.randint(0, 2))
            time.sleep(rng.uniform(0.5, 4.0))
            _limit(pid, before)

    return fault


def _no_memory(kind: str) -> Fault:
    """A process gets no further address space: a control group's limit kills, which is `killed`; this one refuses."""

    def fault(campus: Campus, rng: random.Random) -> None:
        found = [campus.site.relay.pid] if kind == "relay" else by_kind(campus.endpoint.status())[kind]
        if not found:
            return
        pid = rng.choice(found)
        with contextlib.suppress(OSError):
            before = _soft_limit(pid, "Max address space")
            _limit(pid, _address_space(pid) + rng.choice([0, 2**20, 2**23]), "as")
            time.sleep(rng.uniform(0.5, 4.0))
            _limit(pid, before, "as")

    return fault


def _address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _clock_stepped(name: str) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        if campus.clocks is not None:
            clock = Clock(campus.clocks, name)
            clock.step(rng.choice([-1, 1]) * rng.choice([0.5, 5.0, 100.0, 7200.0]))
            FAULTS[rng.choice(WITH_A_STEP)](campus, rng)
            time.sleep(rng.uniform(0.5, 6.0))
            clock.step(0.0)

    return fault


def _job_ended(*words: str) -> Fault:
    def fault(campus: Campus, rng: random.Random) -> None:
        if campus.slurm is not None and (jobs := campus.jobs()):
            with contextlib.suppress(SlurmFailed):  # it has ended by itself
                campus.slurm.run("scancel", *words, rng.choice(jobs))

    return fault


def _controller_frozen(campus: Campus, rng: random.Random) -> None:
    if campus.slurm is not None:
        _stopped(campus, campus.slurm.daemons["slurmctld"].pid, rng)


def _soft_limit(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith(name):
            return line.split()[3]
    raise ProcessLookupError


def _limit(pid: int, soft: int | str, resource: str = "nofile") -> None:
    """Set a soft limit of a process, as its own account: root may lack the capability in a container."""
    text = Path(f"/proc/{pid}/status").read_text()  # the owner of the file is root where the process may not be traced
    uid, gid = (int(line.split()[1]) for line in text.splitlines() if line.startswith(("Uid:", "Gid:")))
    words = ["prlimit", "--pid", str(pid), f"--{resource}={soft}:"]
    subprocess.run(words, user=uid, group=gid, extra_groups=[], check=False)


def kill_in_start(campus: Campus, kind: str, before: set[int]) -> bool:
    """Kill the first process of a kind that is not in `before`; False if none comes."""
    deadline = time.monotonic() + START_WATCHED_S
    while time.monotonic() < deadline:
        new = [pid for pid in by_kind(campus.endpoint.status())[kind] if pid not in before]
        if new:
            _kill(new[0])
            return True
        time.sleep(0.001)
    return False


FAULTS: dict[str, Fault] = {
    **{f"{kind} killed": _killed(kind) for kind in KINDS},
    "relay killed": _relay_killed,
    "links cut": _links_cut,
    "links frozen": _links_frozen,
    **{f"{kind} frozen": _frozen(kind) for kind in ("relay", "manager", "user endpoint", "monitor")},
    "relay's disk full": _full(0),
    "home full": _full(1),
    **{
        f"no memory: {kind}": _no_memory(kind)
        for kind in ("relay", "manager", "user endpoint", "worker", "interchange")
    },
    **{f"{name}'s clock stepped": _clock_stepped(name) for name in CLOCKS},
    f"{SLURM} job killed": _job_ended("--signal=KILL", "--full"),
    f"{SLURM} job cancelled": _job_ended(),
    f"{SLURM} controller frozen": _controller_frozen,
    **{f"no descriptors: {kind}": _no_descriptors(kind) for kind in ("relay", "manager", "user endpoint", "monitor")},
}
STARTS = ("keeper", "PAM process", "user endpoint", "fork server", "worker", "interchange", "block's pool")
"""Kinds that are killed in the middle of a start."""


def possible(only: str) -> list[str]:
    """Return the faults with `only` in their names that this host can have."""
    missing = set() if shutil.which("cc") else {name for name in FAULTS if "clock" in name}
    if not shutil.which("slurmctld", path="/usr/sbin"):
        missing |= {name for name in FAULTS if SLURM in name}
    return [name for name in FAULTS if only in name and name not in missing]
