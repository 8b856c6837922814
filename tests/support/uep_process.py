"""A user endpoint started as a keeper starts it: real sealed memfds, a real report socket, its own process.

Tests that run as root drop to `nobody` in the child, since a user endpoint refuses to be root.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import pwd
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import Any, Self

import msgspec

import user_endpoint
from mep.boundary.memfd import sealed_memfd
from mep_wire.bundle import UepBundle
from mep_wire.identity import Identity, IdentitySet
from mep_wire.start_request import StartRequest, VerifiedStart, encode_start
from tests.support.fake_relay import FakeRelay
from tests.support.waiting import until

MAIN = pathlib.Path(user_endpoint.__file__).parent / "__main__.py"
TEMPLATE = "engine:\n  type: ProcessPoolEngine\n  max_workers: 2\n"


def account() -> pwd.struct_passwd:
    """The account that user endpoints of tests run as."""
    return pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())


@contextlib.contextmanager
def private_home(name: str = "") -> Iterator[pathlib.Path]:
    """Yield a home directory of that account. (pytest's own directories are closed to other users.)"""
    made = pathlib.Path(tempfile.mkdtemp(prefix="mep-home-", suffix=name))
    os.chown(made, account().pw_uid, account().pw_gid)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def _become_user(home: pathlib.Path, umask: int) -> dict[str, str]:
    """Drop to that account, as a keeper's child does; return the environment."""
    who = account()
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(who.pw_gid, who.pw_gid, who.pw_gid)
        os.setresuid(who.pw_uid, who.pw_uid, who.pw_uid)
    os.umask(umask)
    os.chdir("/")
    return {"HOME": str(home), "USER": who.pw_name, "LOGNAME": who.pw_name, "SHELL": "/bin/sh",
            "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}  # fmt: skip


def output_as_user(
    command: list[str],
    given: str,
    home: pathlib.Path,
    environment: dict[str, str],
    *,
    open_files: tuple[int, int],
    umask: int = 0o077,
) -> str:
    """Return the output of a command that is started as a user endpoint is, with `environment` besides and `given` to
    read."""
    read, write = os.pipe()
    stdin = os.memfd_create("given")
    os.pwrite(stdin, given.encode(), 0)
    pid = os.fork()
    if pid == 0:
        try:
            for target, source in ((0, stdin), (1, write)):
                os.dup2(source, target)
            os.closerange(3, 1024)
            resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
            os.execve(command[0], command, _become_user(home, umask) | environment)
        finally:
            os._exit(127)
    os.close(write)
    os.close(stdin)
    with open(read) as file:
        output = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return output


class UepProcess:
    """One user endpoint. `kill` and `__exit__` end it and its orphans."""

    def __init__(
        self,
        relay: FakeRelay,
        home: pathlib.Path,
        *,
        template: str = TEMPLATE,
        uep_id: str | None = None,
        config: dict[str, Any] | None = None,
        environment: dict[str, str] | None = None,
        open_files: tuple[int, int] | None = None,
        umask: int = 0o077,
        **bundle: Any,
    ) -> None:
        self._umask = umask
        self.uep_id = uep_id or str(uuid.uuid4())
        self.home = home
        self._open_files = open_files
        self.state = home / ".mep" / "uep" / self.uep_id
        start = sealed_memfd("start", msgspec.msgpack.encode(self._verified(config or {})))
        documents = UepBundle(
            **{
                "endpoint_id": str(uuid.uuid4()), "endpoint_name": "test", "relay_link_address": relay.address,
                "relay_link_key": relay.raw_key, "template_name": "t", "templates": {"t": template}, "schema": None,
                "user_environment": environment or {}, "parent_config": {}, **bundle,
            }
        )  # fmt: skip
        packed = sealed_memfd("bundle", msgspec.msgpack.encode(documents))
        self.report, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.started_at = time.perf_counter()
        self.pid = os.fork()
        if self.pid == 0:
            self._exec(start, packed, theirs.fileno())
        theirs.close()
        os.close(start)
        os.close(packed)
        self.status: int | None = None

    def _verified(self, config: dict[str, Any]) -> VerifiedStart:
        now = time.time()
        person = IdentitySet("account", (Identity(str(uuid.uuid4()), "alice@example.edu"),))
        request = StartRequest(
            endpoint_id=str(uuid.uuid4()), uep_id=self.uep_id, identity_set=person, user_endpoint_config=config,
            user_runtime={}, issued_at=now, expires_at=now + 60, nonce=b"n" * 16, epoch=b"e" * 16,
            sealed_join_token=b"", correlation_id=str(uuid.uuid4()),
        )  # fmt: skip
        return VerifiedStart(
            request=encode_start(request), join_token=b"j" * 32, local_user=account().pw_name, mapped_identity={}
        )

    def _exec(self, start: int, bundle: int, report: int) -> None:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (null, null, null, start, bundle, report)]
            for target, source in enumerate(high):
                os.dup2(source, target)
            os.closerange(6, 1024)
            if self._open_files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._open_files)
            environment = _become_user(self.home, self._umask)
            os.execve(sys.executable, [sys.executable, "-I", str(MAIN)], environment)
        finally:
            os._exit(127)

    def next_report(self, timeout_s: float = 60.0) -> list[str]:
        """Return the lines of the next report, or [] at end-of-file."""
        self.report.settimeout(timeout_s)
        return self.report.recv(8192).decode().splitlines()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Return the exit code, negative for a signal."""
        until("the user endpoint's end", self._has_ended, timeout_s, details=self.log)
        assert self.status is not None
        return self.status

    def _has_ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def log(self) -> str:
        """Its log."""
        path = self.state / "endpoint.log"
        return path.read_text() if path.exists() else ""

    def children(self) -> list[int]:
        """Every living descendant."""
        found, look = [], [self.pid]
        while look:
            for thread in pathlib.Path(f"/proc/{look.pop()}/task").glob("*"):
                try:
                    direct = [int(child) for child in (thread / "children").read_text().split()]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                found += direct
                look += direct
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        left = self.children()
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.report.close()
