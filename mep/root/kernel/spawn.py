"""From fork to exec: the steps by which a child drops root, and nothing else.

Trusts its plan, which the keeper (for a user endpoint) or the monitor (for manager and mapper) made. If a step fails,
the child names the step on a close-on-exec pipe and exits. End-of-file on that pipe means that exec worked.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.untraceable import close_to_tracers, other_gid
from mep.root.kernel import syscalls

_REPORT = struct.Struct("!BI")
_ORPHAN = struct.Struct("!II")
_MAX_REPORT = 512
_HIGH = 64  # descriptors are first moved above this, so that none is overwritten while they are put in place


@dataclass(frozen=True, slots=True)
class SpawnAccount:
    """The account that a child becomes. `groups` are the supplementary groups; the primary group may be among them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str
    gecos: str = ""


@dataclass(frozen=True, slots=True)
class SpawnPlan:
    """The account, program and environment of a child."""

    account: SpawnAccount
    switch: bool
    """False in single-user mode: there is no other account to become and no root to drop."""
    argv: Sequence[str]
    environment: dict[str, str]
    descriptors: Sequence[int]
    """The descriptors that become 0, 1, 2 and so on; all others are closed."""
    directory: str
    """Working directory; `/` if the child can't enter it."""
    open_files: tuple[int, int] | None = None
    """RLIMIT_NOFILE to restore if the monitor raised its own."""
    setuid_programs: bool = False
    """Whether setuid programs and file capabilities may work in it."""
    prepared: bool = False
    """Whether PAM has already set limits and umask, which then stay."""
    keyring: bool = False
    """Whether PAM made a session keyring for it."""
    gate: tuple[int, int] | None = None
    """A pipe on which the child waits until its parent has put it into its control group and writes to the pipe."""
    rlimits: Sequence[tuple[int, int]] = ()
    """The site's limits, each as number and value. They override all others."""
    enter_group: Callable[[], None] | None = None
    """Called by the child as root to enter a control group."""
    own_network: bool = False
    """Whether it gets an empty network namespace of its own."""
    untraceable: bool = False
    """Whether it stays closed to its own account over exec, until it calls child.forbid_core_and_ptrace, which also
    sets no_new_privs: manager and mapper."""


class StageReport:
    """The parent's end of the report pipe, which carries the child's report once it has exec'd or ended."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._data = b""

    def fileno(self) -> int:
        """The pipe's descriptor, for polling."""
        return self._descriptor

    def finished(self) -> bool:
        """Read the pipe; return True at end-of-file. Raises SpawnFailed if the child named a stage."""
        while True:
            try:
                piece = os.read(self._descriptor, _MAX_REPORT)
            except BlockingIOError:
                return False
            if not piece:
                self._raise_failure()
                return True
            self._data = (self._data + piece)[:_MAX_REPORT]

    def _raise_failure(self) -> None:
        if len(self._data) < _REPORT.size:
            return
        stage, number = _REPORT.unpack_from(self._data)
        raise SpawnFailed(StartStage(stage), number, self._data[_REPORT.size :].decode("utf-8", "replace"))

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._descriptor)


def spawn(plan: SpawnPlan) -> tuple[int, StageReport]:
    """Fork a child that follows `plan`; return its pid and the report of its stages. Raises SpawnFailed(FORK)."""
    theirs, parent = -1, os.getpid()
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
    except OSError as error:
        if theirs >= 0:
            os.close(ours)
            os.close(theirs)
        raise SpawnFailed(StartStage.FORK, error.errno or 0) from None
    if pid == 0:
        _child(plan, theirs, parent)
    os.close(theirs)
    return pid, StageReport(ours)


def spawn_for(parent: int, plan: SpawnPlan, pipe: int) -> int:
    """Fork a child that follows `plan`, as the child of `parent`: this process's own parent, a subreaper.

    Return its pid. The child reports to `pipe`. It must have a gate, at which it waits until its new parent has it.
    Raises OSError.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0:
            _fork_and_end(parent, plan, pipe, theirs)
        os.waitpid(between, 0)  # when it can be reaped, its child already has the new parent
        os.close(theirs)
        pid, number = _ORPHAN.unpack(os.read(ours, _ORPHAN.size))
    finally:
        os.close(ours)
    if number:
        raise OSError(number, os.strerror(number))
    return int(pid)


def _fork_and_end(parent: int, plan: SpawnPlan, pipe: int, said: int) -> NoReturn:
    try:
        pid = os.fork()
        if pid == 0:
            _child(plan, pipe, parent)
        os.write(said, _ORPHAN.pack(pid, 0))
    except OSError as error:
        os.write(said, _ORPHAN.pack(0, error.errno or errno.EAGAIN))
    finally:
        os._exit(0)


def _child(plan: SpawnPlan, pipe: int, parent: int) -> NoReturn:
    try:
        reset_signals()
        pipe = _out_of_the_way(pipe)
        for stage, step in _steps(plan, pipe, parent):
            _take(stage, step)
    except SpawnFailed as failure:
        _report(pipe, failure.stage, failure.errno, failure.detail)
    finally:
        os._exit(127)


def _out_of_the_way(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError as error:
        raise SpawnFailed(StartStage.DESCRIPTORS, error.errno or 0, f"it may not have {_HIGH} open files") from None


def _take(stage: StartStage, step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        raise SpawnFailed(stage, error.errno or 0, str(error.filename or "")) from None
    except (ValueError, OverflowError) as error:
        raise SpawnFailed(stage, errno.EINVAL, str(error)) from None


def _report(pipe: int, stage: StartStage, number: int, detail: str) -> None:
    os.write(pipe, (_REPORT.pack(stage, number) + detail.encode("utf-8", "replace"))[:_MAX_REPORT])


def _steps(plan: SpawnPlan, pipe: int, parent: int) -> list[tuple[StartStage, Callable[[], None]]]:
    """The order matters: bounding set, securebits and groups can only be changed before the uid."""
    account = plan.account
    deny = not plan.setuid_programs
    waiting: list[tuple[StartStage, Callable[[], None]]] = []
    if plan.gate is not None:
        ours, theirs = plan.gate
        waiting = [(StartStage.CGROUP, lambda: _wait_at(ours, theirs))]
    become: list[tuple[StartStage, Callable[[], None]]] = [
        *([(StartStage.CAPABILITIES, _give_up_capabilities)] if deny else []),
        (StartStage.SETGROUPS, lambda: os.setgroups(account.groups)),
        (StartStage.SETGID, lambda: os.setresgid(other_gid(account.gid), account.gid, account.gid)),
        (StartStage.SETUID, lambda: os.setresuid(account.uid, account.uid, account.uid)),
    ]
    return [
        *waiting,
        *([(StartStage.CGROUP, plan.enter_group)] if plan.enter_group is not None else []),
        *([(StartStage.CAPABILITIES, syscalls.unshare_network)] if plan.own_network else []),
        *([] if plan.prepared else [(StartStage.RLIMITS, lambda: prepare(plan.open_files))]),
        *([(StartStage.RLIMITS, lambda: _limit(plan.rlimits))] if plan.rlimits else []),
        *(become if plan.switch else []),
        (StartStage.SETUID, lambda: _closed_and_bound_to(parent, keep_gids=plan.untraceable or not plan.switch)),
        (StartStage.CAPABILITIES, syscalls.clear_capabilities),
        *([] if plan.keyring else [(StartStage.KEYRING, syscalls.join_new_session_keyring)]),
        *([(StartStage.NO_NEW_PRIVS, syscalls.set_no_new_privs)] if deny and not plan.untraceable else []),
        (StartStage.PROVE_DROP, lambda: _prove(plan)),
        (StartStage.SETSID, os.setsid),
        (StartStage.CHDIR, lambda: _enter(plan.directory)),
        (StartStage.DESCRIPTORS, lambda: _place_descriptors(plan.descriptors, pipe)),
        (StartStage.EXEC, lambda: os.execve(plan.argv[0], list(plan.argv), plan.environment)),
    ]


def reset_signals() -> None:
    """Reset every signal to its default action, and block none: ignored ones would stay ignored over exec."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in {signal.SIGKILL, signal.SIGSTOP} and signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_DFL)
    syscalls.default_thread_library_signals()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _wait_at(ours: int, theirs: int) -> None:
    os.close(theirs)  # otherwise the end of the parent would not be end-of-file here
    if os.read(ours, 1) != b"\1":
        raise SpawnFailed(StartStage.CGROUP, errno.ESRCH, "the parent did not let it go on")
    os.close(ours)


def _limit(rlimits: Sequence[tuple[int, int]]) -> None:
    for number, value in rlimits:
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def prepare(open_files: tuple[int, int] | None) -> None:
    """Set this process's umask and limits for a user endpoint. If PAM is enabled, its modules start from these."""
    os.umask(0o077)
    if open_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        if int(file.read()) < 0:
            file.write(b"0")


def _give_up_capabilities() -> None:
    syscalls.empty_bounding_set()
    syscalls.lock_securebits()


def _closed_and_bound_to(parent: int, *, keep_gids: bool) -> None:
    """Hide the copy of the parent's memory from others, and die with the parent. A change of uid resets both."""
    if keep_gids:
        syscalls.set_dumpable(False)
    else:
        close_to_tracers()
    syscalls.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        raise SpawnFailed(StartStage.SETUID, errno.ESRCH, "the parent ended")


def _enter(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")


def _place_descriptors(wanted: Sequence[int], pipe: int) -> None:
    """Make `wanted[n]` descriptor n, keep the report pipe (close-on-exec, above them), close all others."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _HIGH) for descriptor in wanted]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number, inheritable=True)
    syscalls.close_all_but([*range(len(wanted)), pipe])


def _prove(plan: SpawnPlan) -> None:
    prove_drop(plan.account, switched=plan.switch, setuid_programs=plan.setuid_programs, untraceable=plan.untraceable)


def prove_drop(
    account: SpawnAccount, *, switched: bool, setuid_programs: bool = False, untraceable: bool = False
) -> None:
    """Prove that root is gone and can't come back, except through a setuid program where these are allowed.

    A child that stays `untraceable` over exec sets no_new_privs after it. Raises SpawnFailed(PROVE_DROP) with the
    privilege that is left.
    """
    uids, gids = (account.uid,) * 3, (account.gid,) * 3
    if untraceable:
        gids = (other_gid(account.gid), account.gid, account.gid)
    proofs = [
        ("no_new_privs is off", setuid_programs or untraceable or syscalls.no_new_privs()),
        ("capabilities are left", syscalls.capabilities_are_empty()),
        ("uid", os.getresuid() == uids),
        ("root's uid", account.uid != 0),
        ("setuid(0) works", _refused(lambda: os.setuid(0))),
        ("seteuid(0) works", _refused(lambda: os.seteuid(0))),
    ]
    if switched:
        proofs += [
            ("gid", os.getresgid() == gids),
            ("root's gid", account.gid != 0),
            ("groups", set(os.getgroups()) == set(account.groups)),
            ("setgid(0) works", _refused(lambda: os.setgid(0))),
            ("setgroups works", _refused(lambda: os.setgroups([]))),
            ("the bounding set is not empty", setuid_programs or syscalls.bounding_set_is_empty()),
            ("securebits", setuid_programs or syscalls.securebits() == syscalls.SECUREBITS_LOCKED),
        ]
    for what, proven in proofs:
        if not proven:
            raise SpawnFailed(StartStage.PROVE_DROP, 0, what)


def _refused(call: Callable[[], None]) -> bool:
    try:
        call()
    except OSError as error:
        return error.errno == errno.EPERM
    return False
