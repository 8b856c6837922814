"""Trees of processes that grow again from below while they are killed from above: none is left, and it ends."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.accounts import LocalAccount, account
from tests.support.monitor import processes_of

PROGRAM = """
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>
int main(void) {
    struct rlimit limit = {300, 300};
    setrlimit(RLIMIT_NPROC, &limit);
    signal(SIGTERM, SIG_IGN);
    for (;;) {
        int pid = fork();
        %s
    }
}
"""
SHAPES = {
    "a chain whose parents stay": "if (pid > 0) for (;;) pause();",
    "each forks and ends": "if (pid > 0) _exit(0);",
}
ENDS_IT = """
import os, sys, time
from mep.root.kernel import syscalls
from mep.root.kernel.process_tree import kill_descendants
syscalls.become_subreaper()
pid = os.fork()
if pid == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    os.execv(sys.argv[1], sys.argv[1:2])
time.sleep(0.5)
kill_descendants()
"""


@pytest.fixture
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_left(alice: LocalAccount, tmp_path: pathlib.Path, shape: str) -> None:
    for one in (tmp_path, *tmp_path.parents[:2]):
        one.chmod(0o755)
    program = tmp_path / "program"
    made = ["cc", "-O2", "-x", "c", "-o", str(program), "-"]
    subprocess.run(made, input=PROGRAM % SHAPES[shape], text=True, check=True)
    try:
        subprocess.run([sys.executable, "-c", ENDS_IT, str(program), str(alice.uid)], check=True, timeout=60)
        assert not processes_of(alice.uid)
    finally:
        for pid in processes_of(alice.uid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
