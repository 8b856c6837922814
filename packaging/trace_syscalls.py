#!/usr/bin/env python3
"""Writes the lists of system calls for the seccomp filters of manager and mapper from a traced run: `make seccomp`.

Needs root, strace and the kernel's headers (Debian: strace, linux-libc-dev). It runs a command under `strace -f`, by
default the tests that exercise both helpers fully. It collects each helper's system calls after the helper's log line
`confined profile=NAME`, and writes `mep/boundary/syscalls.json`. Calls that the present filter refuses are traced too.
One run thus adds a missing call, or several runs if a refusal changes the code's path. Run it again after a helper's
code has moved or changed, after a new libzmq, cryptography or ldap3, and on each architecture; then read the diff.

    packaging/trace_syscalls.py [--add] [-- COMMAND ...]

`--add` keeps the calls that the lists have; otherwise each traced profile is replaced. Calls that must never be on a
list (FORBIDDEN) are reported and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "mep" / "boundary" / "syscalls.json"
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
TESTS = (
    "tests/acceptance/test_main_job.py",
    "tests/acceptance/test_relay_restart.py",
    "tests/acceptance/test_why.py",
    "tests/privileged/test_live_reload.py",
    "tests/privileged/test_helper_confinement.py",
    "tests/privileged/test_recheck_options.py",
    "tests/privileged/test_revocation.py",
)

ALWAYS = frozenset({
    "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "epoll_create1", "epoll_ctl",
    "epoll_wait", "eventfd2", "exit", "exit_group", "fadvise64", "fstat", "futex", "getcpu", "getcwd",
    "getdents64", "getegid", "geteuid", "getgid", "getpid", "getppid", "getrandom", "getresgid", "getresuid",
    "getrusage", "gettid", "gettimeofday", "getuid", "lseek", "madvise", "membarrier", "mmap", "mprotect",
    "mremap", "munmap", "nanosleep", "newfstatat", "openat", "open", "poll", "ppoll", "pread64", "prlimit64",
    "read", "readlink", "readv", "restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",
    "sched_getaffinity", "sched_yield", "set_robust_list", "sigaltstack", "stat", "lstat", "statx", "sysinfo",
    "tgkill", "time", "uname", "write", "writev", "access", "faccessat", "fcntl", "ioctl", "dup", "recvmsg",
    "sendmsg", "clone", "prctl", "memfd_create", "select", "pselect6", "getsockname", "getsockopt",
    "setsockopt", "recvfrom", "sendto", "lgetxattr", "getxattr", "fgetxattr", "getpeername", "sched_getparam",
    "sched_getscheduler",
})  # fmt: skip
"""Calls that any run may need (another kernel, libc or time of day), whether or not the traced run made them."""
NAMES = frozenset({"socket", "connect", "bind", "sendmmsg", "recvmmsg", "shutdown"})
"""Calls for a connection and a name look-up; they depend on nsswitch.conf."""
PROFILES = {"manager": ALWAYS | NAMES | {"fdatasync", "fsync"}, "mapper": ALWAYS, "mapper-network": ALWAYS | NAMES}
_NEVER = frozenset({
    "chmod", "chown", "copy_file_range", "creat", "fallocate", "fchmod", "fchmodat", "fchown", "fchownat",
    "flock", "fork", "ftruncate", "kill", "lchown", "link", "linkat", "listen", "accept", "accept4", "mkdir",
    "mkdirat", "mknod", "mknodat", "mq_open", "msgget", "name_to_handle_at", "personality", "pidfd_open",
    "pidfd_send_signal", "prctl_set_mm", "rename", "renameat", "renameat2", "rmdir", "semget", "setpgid",
    "setrlimit", "setsid", "setxattr", "shmget", "socketpair", "symlink", "symlinkat", "tkill", "truncate",
    "unlink", "unlinkat", "utime", "utimensat", "vfork",
})  # fmt: skip
FORBIDDEN = {"manager": _NEVER, "mapper": _NEVER | NAMES, "mapper-network": _NEVER}

_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")
_CONFINED = re.compile(r"(?:manager|mapper)\[(\d+)\]: confined profile=([a-z-]+)")
_THREAD = re.compile(r"CLONE_THREAD.* = (\d+)$")
_RESUMED_CLONE = re.compile(r"^(\d+) +<\.\.\. clone3? resumed>.* = (\d+)$")
_NO_CALLS = ("syscalls", "arch_specific_syscall")
_NUMBER = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$")


def numbers() -> dict[str, dict[str, int]]:
    """Return the numbers of every system call in the kernel's headers, by architecture."""
    found = {}
    for machine, paths in HEADERS.items():
        path = next((path for path in map(Path, paths) if path.exists()), None)
        if path is None:
            sys.exit(f"there are no kernel headers for {machine}: apt-get install linux-libc-dev")
        matches = (_NUMBER.match(line.strip()) for line in path.read_text().splitlines())
        table = {match[1]: int(match[2]) for match in matches if match}
        found[machine] = {name: number for name, number in table.items() if name not in _NO_CALLS}
    return found


def instead(table: dict[str, dict[str, int]]) -> dict[str, str]:
    """Return the call that replaces each older call that some architectures lack."""
    pairs = {
        "access": "faccessat", "open": "openat", "stat": "newfstatat", "lstat": "newfstatat", "poll": "ppoll",
        "select": "pselect6", "epoll_wait": "epoll_pwait", "readlink": "readlinkat", "dup2": "dup3", "pipe": "pipe2",
        "eventfd": "eventfd2", "time": "gettimeofday", "epoll_create": "epoll_create1",
    }  # fmt: skip
    return {old: new for old, new in pairs.items() if new in table["aarch64"]}


class Trace:
    """The system calls of one run's helpers, by profile."""

    def __init__(self) -> None:
        self.calls: dict[str, Counter[str]] = defaultdict(Counter)
        self.complete = True
        """Whether the command succeeded. After one that failed, no call leaves a list."""
        self._profile: dict[str, str] = {}
        self._cloning: set[str] = set()

    def take(self, lines: Iterable[str]) -> None:
        """Read strace's output."""
        for line in lines:
            if resumed := _RESUMED_CLONE.match(line):
                if resumed[1] in self._cloning:
                    self._profile[resumed[2]] = self._profile[resumed[1]]
                continue
            if call := _CALL.match(line):
                self._take_call(*call.groups())

    def _take_call(self, pid: str, name: str, rest: str) -> None:
        if name == "execve":
            self._profile.pop(pid, None)
        if (
            name == "write" and (confined := _CONFINED.search(rest)) and confined[1] == pid
        ):  # the monitor copies the line
            self._profile[pid] = confined[2]
        profile = self._profile.get(pid)
        if profile is None:
            return
        self.calls[profile][name] += 1
        if name in ("clone", "clone3") and "CLONE_THREAD" in rest:
            self._cloning.add(pid)
            if thread := _THREAD.search(rest):
                self._profile[thread[1]] = profile


def traced(command: list[str]) -> Trace:
    """Run `command` under strace and return its helpers' system calls."""
    if shutil.which("strace") is None:
        sys.exit("strace is missing: apt-get install strace")
    trace = Trace()
    with tempfile.TemporaryDirectory(prefix="mep-trace-") as directory:
        output = Path(directory, "strace")
        done = subprocess.run(
            ["strace", "-f", "-qq", "-s", "256", "-e", "signal=none", "-o", str(output), *command], cwd=ROOT
        )
        if done.returncode:
            trace.complete = False
            print(
                f"the command ended with status {done.returncode}: calls are only added; mend that and run this again"
            )
        with output.open(errors="replace") as lines:
            trace.take(line.rstrip("\n") for line in lines)
    return trace


def merged(profile: str, seen: set[str], before: set[str], *, add: bool) -> list[str]:
    """Print the changes to the list for `profile`, and return the new list."""
    refused = sorted(seen & FORBIDDEN[profile])
    kept = before if add else set()
    now = (seen | kept | PROFILES[profile]) - FORBIDDEN[profile] - {"clone3", "openat2", "execve", "seccomp"}
    print(f"{profile}: {len(now)} calls; new: {sorted(now - before)}; gone: {sorted(before - now)}; refused: {refused}")
    return sorted(now)


def main() -> None:
    """Trace, write the data and print the changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", action="store_true", help="keep what the lists have")
    parser.add_argument("command", nargs="*", help="what to trace, after --")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root: it traces processes of other accounts")
    pytest = Path(sys.executable).with_name("pytest")  # which runs in the service's interpreter
    command = given.command or [str(pytest), "-q", "-x", *TESTS]
    before: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {"profiles": {}}
    trace = traced(command) if command != ["none"] else Trace()
    table = numbers()
    profiles = {}
    for profile in PROFILES:
        seen, old = set(trace.calls.get(profile, ())), set(before["profiles"].get(profile, ()))
        profiles[profile] = merged(profile, seen, old, add=given.add or not trace.complete or not seen)
    data = {"profiles": profiles, "instead": instead(table), "numbers": table}
    DATA.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
    if not trace.complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
