"""Control groups: of user endpoints, of manager and mapper. A keeper creates, watches and kills its user endpoint's.

If systemd is init, it owns the tree. A transient scope is requested with busctl: `StartTransientUnit` of
org.freedesktop.systemd1(5), in a slice of the account, in a slice of the endpoint. A single-user endpoint asks its
owner's service manager, which runs while the owner is logged in or lingers. If PAM opened a logind session, the limits
are set on the session's scope. Without systemd, the tree /sys/fs/cgroup/mep is written directly. It lies outside the
group that the monitor was started in, because a service manager may change that group at any time.

The child waits at a gate before its first step until the keeper has put it into its group, so neither it nor its
descendants are ever outside the group. The other side of the gate is in spawn.py.

A keeper is never a member itself. Trusts its configuration, systemd and the kernel. Called by keeper.py and
supervisor.py, by helper_limits.py, and with a dead keeper's record by keepers.py.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mep.boundary.cgroup_support import BUSCTL, can_group, controllers, runtime_dir_of, tree, under_systemd
from mep.boundary.errors import Refusal, SpawnFailed, StartStage, public_text
from mep.boundary.resolved_config import Limits
from mep.root.kernel.program import Program, run
from mep.root.kernel.spawn import SpawnAccount

_OURS = "mep"
_BUS_LIMIT_S = 20.0
_UNLIMITED_S = 5.0
"""Time limit for systemd to create a group that isn't needed for limits, only for an easier end."""
_TRIES = 5
_LOOK_AGAIN_S = 0.002
_REMOVE_TRIES = 200
_RECENT_S = 5.0
_CPU_PERIOD_US = 100_000
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_KILL = "cgroup.kill"

Property = tuple[str, str, str]
Unit = tuple[str, list[Property]]
"""A unit's name and properties."""
"""Name, D-Bus type and value, as busctl takes them."""


class CgroupFailed(Exception):
    """The user endpoint can't be put into a control group with its limits. The text is for the administrator."""


@dataclass(frozen=True, slots=True)
class Member:
    """The process that is put into a group."""

    pid: int
    endpoint: str
    uep_id: str
    uid: int
    limits: Limits

    @property
    def person_limits(self) -> Limits:
        """The limits on all processes of the account together."""
        own = self.limits
        return Limits(
            memory_max=own.person_memory_max, memory_high=own.person_memory_high, cpu_max=own.person_cpu_max,
            tasks_max=own.person_tasks_max, io_weight=own.person_io_weight,
        )  # fmt: skip


def group_of(pid: int) -> str:
    """Return the path of the cgroup v2 that process `pid` is in. Raises OSError, CgroupFailed."""
    with open(f"/proc/{pid}/cgroup") as file:
        for line in file:
            if line.startswith("0::"):
                return tree() + line[3:].rstrip("\n").rstrip("/")
    raise CgroupFailed("there is no cgroup v2")


class Cgroup:
    """The group of one user endpoint."""

    def __init__(self, path: str, limits: Limits, *, ours: bool) -> None:
        """If `ours` is set, we created the group directly and must remove it."""
        self.path, self._limits, self._ours = path, limits, ours
        self._memory, self._processes = self._events("memory"), self._events("pids")
        self._oom_kills = self._own_ooms = self._forks_denied = 0
        self._killed_at = self._denied_at = float("-inf")
        self._own_limit = False

    def _events(self, controller: str) -> int:
        """Open the controller's events file, which stays readable while the group exists; -1 if there is none."""
        try:
            return os.open(f"{self.path}/{controller}.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1

    def urgent(self) -> list[int]:
        """Return the descriptors to poll for POLLPRI, then `look`: once all processes ended, the group may be gone."""
        return [descriptor for descriptor in (self._memory, self._processes) if descriptor >= 0]

    def look(self) -> None:
        """Record which limits have been exceeded so far."""
        memory, processes = _counts(self._memory), _counts(self._processes)
        if memory is None:
            self._memory = _closed(self._memory)
        if processes is None:
            self._processes = _closed(self._processes)
        memory, processes, now = memory or {}, processes or {}, time.monotonic()
        if (kills := memory.get("oom_kill", 0)) > self._oom_kills:
            self._oom_kills, self._killed_at = kills, now
            self._own_limit = memory.get("oom", 0) > self._own_ooms
            self._own_ooms = memory.get("oom", 0)
        if (denied := processes.get("max", 0)) > self._forks_denied:
            self._forks_denied, self._denied_at = denied, now

    def excess(self) -> tuple[Refusal, str] | None:
        """Return the code and public text of the limit that was exceeded just now, if any.

        An earlier excess that the user endpoint survived is not the reason for its end.
        """
        since = time.monotonic() - _RECENT_S
        if self._killed_at > since:
            code, limit = Refusal.OUT_OF_MEMORY, self._memory_limit()
        elif self._denied_at > since:
            code, limit = Refusal.TOO_MANY_PROCESSES, f"limit {self._limits.tasks_max}"
        else:
            return None
        return code, public_text(code, limit=limit)

    def _memory_limit(self) -> str:
        if self._own_limit and self._limits.memory_max:
            return f"limit {size_text(self._limits.memory_max)}"
        if self._limits.person_memory_max:
            return f"limit of all your processes together {size_text(self._limits.person_memory_max)}"
        return "of the host itself"

    def end(self) -> None:
        """Kill everything in the group."""
        self.look()
        kill(self.path)

    def close(self) -> None:
        """Release the group after all processes are reaped. If it is ours, remove it, and the account's if empty."""
        self._memory, self._processes = _closed(self._memory), _closed(self._processes)
        if self._ours:
            remove(self.path)


def size_text(size: int) -> str:
    """Return a number of bytes in a readable unit."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} bytes"


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


def _counts(descriptor: int) -> dict[str, int] | None:
    """Return the counters of an events file: empty without a file, None if its group is gone."""
    if descriptor < 0:
        return {}
    try:
        lines = os.pread(descriptor, 4096, 0).decode("ascii").splitlines()
    except OSError:
        return None
    return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}


def kill(path: str) -> None:
    """SIGKILL everything in the group `path`. Kernels before 5.14 can't do this; then do nothing."""
    with contextlib.suppress(OSError):
        _write(path, _KILL, "1")


def remove(path: str, tries: int = _REMOVE_TRIES) -> None:
    """Remove a group that we created and the groups above it that are then empty; leave systemd's alone."""
    ours = f"{tree()}/{_OURS}"
    if not path.startswith(f"{ours}/"):
        return
    for _ in range(tries):
        try:
            os.rmdir(path)
            break
        except FileNotFoundError:
            break
        except OSError:  # a killed process has not quite gone
            time.sleep(_LOOK_AGAIN_S)
    while (path := os.path.dirname(path)).startswith(ours):
        try:
            os.rmdir(path)
        except OSError:
            return


def enter(member: Member, left: Callable[[], float]) -> Cgroup | None:
    """Put a waiting process into its group. Return None if no control group works and no limit needs one.

    `left` returns the seconds that remain. Raises CgroupFailed, OSError.
    """
    if controllers(member.limits):
        return _place(member, left)
    try:
        return _place(member, lambda: min(left(), _UNLIMITED_S))
    except (OSError, CgroupFailed):
        return None


def _place(member: Member, left: Callable[[], float]) -> Cgroup:
    if not under_systemd():
        return _enter_by_hand(member)
    path = group_of(member.pid)
    session = os.path.basename(path)
    opened = path != group_of(os.getpid())  # by PAM; otherwise it is the session that the monitor was started from
    if opened and session.startswith("session-") and session.endswith(".scope"):
        return _limit_session(member, session, left)
    return _ask_for_scope(member, left)


# --- manager and mapper -----------------------------------------------------------------------------------


def enter_helper_group(pid: int, endpoint: str, kind: str, limits: Limits, left: Callable[[], float]) -> None:
    """Put manager or mapper into a group with `limits`. Raises CgroupFailed, OSError."""
    if not under_systemd():
        path = _made(_helper_names(endpoint, kind), controllers(limits))
        _write_limits(path, limits)
        _write(path, "cgroup.procs", str(pid))
        return
    above = f"mep-{unit_word(endpoint)}"
    scope = f"{above}-{kind}-{pid}.scope"
    wanted = [
        ("Description", "s", f"MEP {kind} of {endpoint}"),
        ("Slice", "s", f"{above}.slice"),
        ("CollectMode", "s", "inactive-or-failed"),
        *_properties(limits),
    ]
    _start_scope_and_slices(scope, wanted, pid, _missing_slices(endpoint), left)
    _entered(pid, scope, left)


def remove_helper_group(endpoint: str, kind: str) -> None:
    """Remove the group that `enter_helper_group` created directly. Doesn't wait."""
    if not under_systemd():
        remove("/".join([tree(), *_helper_names(endpoint, kind)]), tries=1)


def _helper_names(endpoint: str, kind: str) -> list[str]:
    return [_OURS, f"endpoint-{endpoint}", f"helper-{kind}"]


# --- with systemd ---------------------------------------------------------------------------------------


def unit_word(name: str) -> str:
    """Return `name` for use in a unit name, where a dash would mean a nested slice (systemd.unit(5))."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char == "_") else f"\\x{ord(char):02x}" for char in name
    )


def _ask_for_scope(member: Member, left: Callable[[], float]) -> Cgroup:
    slice_of_endpoint = f"mep-{unit_word(member.endpoint)}"
    slice_of_person = f"{slice_of_endpoint}-{member.uid}"
    scope = f"{slice_of_endpoint}-{member.uep_id.replace('-', '')}.scope"
    person = _properties(member.person_limits)
    is_there = os.path.isdir(f"{_group_of_slice(member.endpoint)}/{slice_of_person}.slice")
    slices: list[Unit] = [] if is_there else [(f"{slice_of_person}.slice", person)]
    slices += _missing_slices(member.endpoint)
    wanted = [
        ("Description", "s", f"User endpoint {member.uep_id} of {member.endpoint}"),
        ("Slice", "s", f"{slice_of_person}.slice"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("Delegate", "b", "true"),  # otherwise systemd ends the whole scope when the kernel kills one process in it
        *_properties(member.limits),
    ]
    created = _start_scope_and_slices(scope, wanted, member.pid, slices, left)
    if person and (is_there or not created):
        _set_properties(f"{slice_of_person}.slice", person, left)
    return Cgroup(_entered(member.pid, scope, left), member.limits, ours=False)


def _group_of_slice(endpoint: str) -> str:
    return f"{_tree_of_manager()}/mep.slice/mep-{unit_word(endpoint)}.slice"


def _missing_slices(endpoint: str) -> list[Unit]:
    """Return the endpoint's slice unless it exists. systemd would create it as well, but would not remove it."""
    return [] if os.path.isdir(_group_of_slice(endpoint)) else [(f"mep-{unit_word(endpoint)}.slice", [])]


def _tree_of_manager() -> str:
    """Return the group in which the service manager (the host's or the owner's) creates its slices."""
    uid = os.geteuid()
    return tree() if uid == 0 else f"{tree()}/user.slice/user-{uid}.slice/user@{uid}.service"


def _start_scope_and_slices(
    scope: str, wanted: Sequence[Property], pid: int, slices: Sequence[Unit], left: Callable[[], float]
) -> bool:
    """Start `scope` and those of `slices` that are missing. Return False if another start has created one of them."""
    try:
        _start_scope(scope, wanted, pid, slices, left)
    except CgroupFailed:
        if not slices:
            raise
        _start_scope(scope, wanted, pid, [], left)
        return False
    return True


def _start_scope(
    scope: str, wanted: Sequence[Property], pid: int, slices: Sequence[Unit], left: Callable[[], float]
) -> None:
    words = [scope, "fail", str(len(wanted) + 1), "PIDs", "au", "1", str(pid), *_flat(wanted), str(len(slices))]
    for name, values in slices:
        own: list[Property] = [("StopWhenUnneeded", "b", "true"), *values]
        words += [name, str(len(own)), *_flat(own)]
    _busctl("StartTransientUnit", "ssa(sv)a(sa(sv))", words, left)


def _set_properties(unit: str, values: Sequence[Property], left: Callable[[], float]) -> None:
    _busctl("SetUnitProperties", "sba(sv)", [unit, "true", str(len(values)), *_flat(values)], left)


def _flat(values: Sequence[Property]) -> list[str]:
    return [word for one in values for word in one]


def _properties(limits: Limits) -> list[Property]:
    """Return `limits` as systemd's properties (systemd.resource-control(5))."""
    found: list[Property] = []
    for name, value in (
        ("MemoryMax", limits.memory_max), ("MemoryHigh", limits.memory_high), ("TasksMax", limits.tasks_max),
        ("IOWeight", limits.io_weight), ("CPUQuotaPerSecUSec", round(limits.cpu_max * 1_000_000)),
    ):  # fmt: skip
        if value:
            found.append((name, "t", str(value)))
    return found


def _limit_session(member: Member, scope: str, left: Callable[[], float]) -> Cgroup:
    if _properties(member.person_limits):
        raise CgroupFailed(
            "limits of a person cannot be set on a session of logind's: take pam_systemd out of the PAM service"
        )
    if wanted := _properties(member.limits):
        _set_properties(scope, wanted, left)
    return Cgroup(group_of(member.pid), member.limits, ours=False)


def _entered(pid: int, scope: str, left: Callable[[], float]) -> str:
    """Wait until systemd, which only queues the job, has moved `pid`. Return the group's path."""
    while True:
        path = group_of(pid)
        if os.path.basename(path) == scope:
            return path
        if left() <= 0:
            raise CgroupFailed(f"systemd has not put the process into {scope} in time")
        time.sleep(_LOOK_AGAIN_S)


def _busctl(method: str, signature: str, words: Sequence[str], left: Callable[[], float]) -> None:
    """Call systemd. Raises CgroupFailed with busctl's error or if it doesn't return in time, OSError."""
    seconds = max(1.0, min(_BUS_LIMIT_S, left()))
    whose = "--system" if os.geteuid() == 0 else "--user"
    words = ["--quiet", f"--timeout={seconds:.0f}", "call", *_MANAGER, method, signature, *words]
    bus = {} if os.geteuid() == 0 else {"XDG_RUNTIME_DIR": runtime_dir_of(os.geteuid())}
    busctl = Program(BUSCTL, [BUSCTL, whose, *words], {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **bus})
    ran = run(busctl, seconds + 1)
    if ran.problem or ran.code:
        raise CgroupFailed(f"systemd: {ran.problem or ran.errors[:500] or f'busctl ended with {ran.code}'}")


# --- without systemd --------------------------------------------------------------------------------------


def _enter_by_hand(member: Member) -> Cgroup:
    names = [_OURS, f"endpoint-{member.endpoint}", f"uid-{member.uid}", member.uep_id]
    for left in reversed(range(_TRIES)):
        try:
            path = _made(names, controllers(member.limits))
            break
        except FileNotFoundError:  # the end of another user endpoint has removed a group that both share
            if not left:
                raise
    try:
        _write_limits(os.path.dirname(path), member.person_limits)
        _write_limits(path, member.limits)
        _write(path, "cgroup.procs", str(member.pid))
    except OSError:
        remove(path, tries=1)
        raise
    return Cgroup(path, member.limits, ours=True)


def _made(names: Sequence[str], wanted: set[str]) -> str:
    path = tree()
    for name in names:
        if wanted:
            _write(path, "cgroup.subtree_control", " ".join(f"+{one}" for one in sorted(wanted)))
        path = os.path.join(path, name)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)
    return path


def _write_limits(path: str, limits: Limits) -> None:
    quota = f"{round(limits.cpu_max * _CPU_PERIOD_US)} {_CPU_PERIOD_US}" if limits.cpu_max else ""
    for name, value in (
        ("memory.max", limits.memory_max), ("memory.high", limits.memory_high), ("pids.max", limits.tasks_max),
        ("cpu.max", quota), ("io.weight", limits.io_weight),
    ):  # fmt: skip
        if value:
            _write(path, name, str(value))


def _write(path: str, name: str, value: str) -> None:
    descriptor = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{name} {value}: {error.strerror}", path) from None
    finally:
        os.close(descriptor)


def rlimits(limits: Limits) -> list[tuple[int, int]]:
    """Return the per-process limits of `limits` as setrlimit(2) takes them."""
    found = [
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NPROC, limits.processes),
    ]
    return [(number, value) for number, value in found if value]


class CgroupGate:
    """Brings one child into its control group. Always close it, whether or not the child started."""

    def __init__(
        self, endpoint: str, uep_id: str, account: SpawnAccount, limits: Limits, *, waits: bool = False
    ) -> None:
        """`waits`: the child has to wait even if it has no group to enter."""
        self._endpoint, self._uep_id, self._account, self._limits = endpoint, uep_id, account, limits
        self.rlimits = rlimits(limits)
        self.pipe: tuple[int, int] | None = None
        """The descriptors that the child reads and we write; None if it doesn't wait."""
        if waits or controllers(limits) or can_group():
            self.pipe = os.pipe2(os.O_CLOEXEC)

    def admit(self, pid: int, left: Callable[[], float]) -> Cgroup | None:
        """Put the child into its group and let it go on. Raises SpawnFailed(CGROUP)."""
        if self.pipe is None:
            return None
        try:
            group = enter(Member(pid, self._endpoint, self._uep_id, self._account.uid, self._limits), left)
            os.write(self.pipe[1], b"\1")
        except CgroupFailed as failure:
            raise SpawnFailed(StartStage.CGROUP, 0, str(failure)) from None
        except OSError as error:
            raise SpawnFailed(StartStage.CGROUP, error.errno or 0, str(error)) from None
        return group

    def close(self) -> None:
        """Close the gate: a child that was not let through ends."""
        pipe, self.pipe = self.pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)
