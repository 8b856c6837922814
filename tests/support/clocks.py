"""Clocks of relay, client and endpoint's host that can be stepped: the time of day, and no monotonic one.

A small library in front of libc's adds to the time of day what a file says. The relay and the client load it by
LD_PRELOAD. The monitor passes no such variable on. The endpoint therefore has an /etc/ld.so.preload in a mount
namespace of its own. Manager, mapper, keepers, user endpoints and people's programs have one clock, as on a host.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from sitekit.ledger import Ledger

CLOCKS = ("relay", "client", "endpoint")
PRELOAD = Path("/etc/ld.so.preload")
_BIND = f'mount --bind "$0" {PRELOAD} && exec "$@"'
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long none, *shift = &none;
static int (*ask)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int file = open(SHIFT, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    void *found = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) shift = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!ask) *(void **)&ask = dlsym(RTLD_NEXT, "clock_gettime");
    int status = ask(clock, at);
    if (status == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = at->tv_sec * 1000000000LL + at->tv_nsec + *shift;
        at->tv_sec = ns / 1000000000LL;
        at->tv_nsec = ns % 1000000000LL;
    }
    return status;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return status;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The time of day of the processes that load `library`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.library, self._shift = folder / f"{name}.so", folder / f"{name}.shift"
        self.env = {"LD_PRELOAD": str(self.library)}

    def make(self) -> None:
        """Build the library, with the host's time."""
        self._shift.write_bytes(bytes(8))
        words = ["cc", "-x", "c", "-O2", "-shared", "-fPIC", f'-DSHIFT="{self._shift}"', "-o", str(self.library), "-"]
        subprocess.run(words, input=_SOURCE.encode(), check=True)

    def step(self, seconds: float) -> None:
        """Set it to so many seconds after the host's, for those that run already too."""
        with self._shift.open("r+b", buffering=0) as file:
            file.write(int(seconds * 1e9).to_bytes(8, "little", signed=True))


def for_all_below(clock: Clock, stack: ExitStack, ledger: Ledger) -> list[str]:
    """Return the words before a command that give it, and all that comes of it, this clock. As root."""
    if not PRELOAD.exists():  # a file is needed to mount one upon; an empty one does nothing
        ledger.path(PRELOAD)
        PRELOAD.touch()
        stack.callback(PRELOAD.unlink, missing_ok=True)
    listed = clock.library.with_suffix(".preload")
    listed.write_text(f"{PRELOAD.read_text()}\n{clock.library}\n")
    return ["unshare", "--mount", "sh", "-c", _BIND, str(listed)]


def begin(*, needed: bool) -> Path | None:
    """Make the clocks and execute this program again, which then has the client's; return their folder the second time.

    Return None if no clock is needed.
    """
    folder = os.environ.pop("MEP_CLOCKS", "")
    if folder:
        del os.environ["LD_PRELOAD"]
    elif needed:
        _execute_again()
    return Path(folder) if folder else None


def _execute_again() -> NoReturn:
    folder = Path(tempfile.gettempdir(), f"mepbench-clocks-{secrets.token_hex(4)}")
    Ledger().path(folder)  # this process keeps its number, so the next run removes what a killed one has left
    folder.mkdir()
    for name in CLOCKS:
        Clock(folder, name).make()
    variables = os.environ | Clock(folder, "client").env | {"MEP_CLOCKS": str(folder)}
    os.execve(sys.executable, sys.orig_argv, variables)
