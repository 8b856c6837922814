"""Children of the command line that have dropped root, and that no other process of their account can ever trace.

All code that makes keys or uses the network runs in one. Such a child is forked and does not exec. It becomes its
account by mep/boundary/untraceable.py, isn't dumpable from then on, and gets its secrets with the fork. It has no
terminal, no descriptor but its socket and those passed to it, no new privileges, and may not fork, or only start a few
threads. It answers in datagrams of a size that its parent bounds. `run_module` is for work without secrets and without
the network, and execs. Used by configure, register, delete and check.
"""

from __future__ import annotations

import os
import pwd
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

from mep.boundary import untraceable
from mep.cli.exit_codes import CliFailed

TIMEOUT_S = 120
END_S = 5.0
"""How long a child may take to end after SIGKILL. A FUSE or NFS server that doesn't answer can hold it for ever."""
MAX_OUTPUT_BYTES = 32 * 1024 * 1024
"""Most that is read of a child's output: more than the rendered text of any set of options that is of use."""
_KEPT = ("LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
Work = Callable[[socket.socket], None]


def clean_environment() -> dict[str, str]:
    """Return the environment for our own children, without variables that could change which code they run."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **kept}


class UnprivilegedChild:
    """A child that runs `work` as `account` (None: the present account), for the length of a `with` block.

    `work` gets a SOCK_SEQPACKET socket to the parent. `keep` are the other descriptors that it may use. `threads` is
    the most processes and threads that `account` may have for it to start one; 0: it starts none.
    """

    def __init__(
        self, work: Work, account: pwd.struct_passwd | None, keep: Sequence[int] = (), *, threads: int = 0
    ) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _be(work, theirs, account, [theirs.fileno(), *keep], parent, threads)
        theirs.close()

    def send(self, data: bytes) -> None:
        """Send it a datagram. Raises OSError."""
        self._socket.send(data)

    def receive(self, size: int, timeout_s: float = TIMEOUT_S) -> bytes:
        """Return at most `size` + 1 bytes of the next datagram; empty if the child has ended. Raises CliFailed."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout_s * 1000):
            raise CliFailed(f"the child that should do this did not end within {timeout_s:g} s")
        try:
            return self._socket.recv(size + 1)
        except ConnectionError:
            return b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it. One that a file system of its account's holds in the kernel is left behind: init reaps it."""
        self._socket.close()
        pidfd = os.pidfd_open(self.pid)
        try:
            os.kill(self.pid, 9)
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            if ended.poll(END_S * 1000):
                os.waitpid(self.pid, 0)
        finally:
            os.close(pidfd)


def _be(
    work: Work, answers: socket.socket, account: pwd.struct_passwd | None, keep: list[int], parent: int, threads: int
) -> NoReturn:
    try:
        os.setsid()  # no terminal: a child that was taken over cannot type into it
        _leave_all_but(keep)
        if account is not None:
            untraceable.become(account.pw_uid, account.pw_gid)
        untraceable.close_to_tracers()
        untraceable.gain_no_privilege()
        untraceable.end_with(parent)
        refuse_root()
        kept = clean_environment()
        os.environ.clear()
        os.environ.update(kept)
        os.chdir("/")
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if account is not None:
            resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
        work(answers)
    finally:
        os._exit(0)


def refuse_root() -> None:
    """Raise PermissionError if this process has a trace of root: ids, groups, or a way back."""
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        raise PermissionError("refuses to run as root")
    try:
        os.setuid(0)
    except PermissionError:
        return
    raise PermissionError("could become root again")


def _leave_all_but(keep: Sequence[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the names alone
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the listing's own


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    account: pwd.struct_passwd | None,
    descriptor: int,
    timeout_s: float = TIMEOUT_S,
) -> bytes:
    """Run `python -I -m module` as `account` (None: the present account) and return its output. Pass it no secret.

    Its standard error goes to ours. `descriptor` is inherited under its own number. Its real gid stays different from
    its effective one, so no other process of the account can trace it and change its output.
    Raises CliFailed if it doesn't exit with 0 in time, or prints more than MAX_OUTPUT_BYTES.
    """
    argv = [sys.executable, "-I", "-m", module, *arguments]

    def drop() -> None:
        if account is not None:
            untraceable.become(account.pw_uid, account.pw_gid)

    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            env=clean_environment(),
            umask=0o077,
            pass_fds=[descriptor],
            preexec_fn=drop,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CliFailed(f"{argv[0]}: {error}") from None
    with child:
        try:
            said = _output_of(child, module, timeout_s)
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise CliFailed(f"{module} did not end within {timeout_s:g} s") from None
        finally:
            child.kill()
    if status != 0:
        raise CliFailed(f"{module} failed with status {status}")
    return said


def _output_of(child: subprocess.Popen[bytes], module: str, timeout_s: float) -> bytes:
    """Return a child's output up to its end. Raises CliFailed if it is too long, and TimeoutExpired."""
    assert child.stdout is not None, "it is a pipe"
    said, deadline = bytearray(), time.monotonic() + timeout_s
    poll = select.poll()
    poll.register(child.stdout, select.POLLIN)
    while len(said) <= MAX_OUTPUT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise subprocess.TimeoutExpired(module, timeout_s)
        part = os.read(child.stdout.fileno(), 1 << 16)
        if not part:
            return bytes(said)
        said += part
    raise CliFailed(f"{module} printed more than {MAX_OUTPUT_BYTES} bytes")
