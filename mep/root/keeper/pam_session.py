"""The keeper's side of its user endpoint's PAM process (session_process.py): start it, receive its messages, end it.

The keeper never loads libpam. It knows the last stage that the PAM process reported, so it can name a module that
hangs, and the module can't take longer than the start may. A later kill of the PAM process is logged and doesn't end
the user endpoint. At the end, a substitute process closes the session with a new transaction, which is all that
modules can then be given. Whichever process dies, the session is closed once. Trusts the PAM process as itself.
Called by keeper.py.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.log import Log
from mep.root.account.lookup import StartRefused
from mep.root.kernel.process_tree import stop_mark
from mep.root.kernel.signals import wait_readable
from mep.root.kernel.spawn import SpawnPlan, StageReport
from mep.root.pam.session_process import CLOSE_S, Login, pam_process, pam_substitute

LOOK_S = 4.0
"""Pause between two looks whether the PAM process was stopped by a signal."""
_STUCK_S = 5.0
"""How long a module may go on after the keeper has stopped waiting for it."""
_MAX_WORDS = 65536


class PamProcess:
    """One account's session with PAM service `service`."""

    def __init__(self, service: str, user: str, forbidden: Mapping[int, str], log: Log) -> None:
        """`forbidden` are the groups that modules may not add, as forbidden_gids gives them."""
        self._service, self._user, self._forbidden, self._log = service, user, forbidden, log
        self.pid = 0
        """The pid of the PAM process; 0 if there is none."""
        self._socket: socket.socket | None = None
        self._answered = self._lost = False

    def spawn(
        self, plan: SpawnPlan, heard: Callable[[], Sequence[int]], begin: Callable[[StartStage], None],
        left: Callable[[], float],
    ) -> tuple[int, StageReport]:  # fmt: skip
        """Have the session opened and the child of `plan` forked in it. Returns the same as spawn.spawn.

        `begin` is called with each stage, and again whenever one of `heard` is readable. It may refuse the stage.
        Raises StartRefused, SpawnFailed and any exception of `begin`.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours, pipe = os.pipe2(os.O_CLOEXEC)
        login = Login(self._service, plan, self._forbidden, os.getpid(), pipe, left())
        report = StageReport(ours)
        try:
            self.pid = _fork(lambda: pam_process(login, theirs))
            os.close(pipe)
            theirs.close()
            return self._user_endpoint(heard, begin, left), report
        except BaseException:
            report.close()
            raise

    def _user_endpoint(
        self, heard: Callable[[], Sequence[int]], begin: Callable[[StartStage], None], left: Callable[[], float]
    ) -> int:
        assert self._socket is not None
        stage, stopped = StartStage.PAM_ACCOUNT, b""
        while True:
            ready = wait_readable([self._socket.fileno()], 0)
            if not ready:
                begin(stage)
                if not wait_readable([self._socket.fileno(), *heard()], min(left(), LOOK_S)):
                    stopped = self._refuse_stopped(stage, stopped)
                continue
            data = self._socket.recv(_MAX_WORDS)
            if not data:
                raise SpawnFailed(stage, errno.EINTR if self._was_killed() else 0, "the PAM process ended")
            said = json.loads(data)
            if "stage" in said:
                stage = StartStage(said["stage"])
                continue
            self._answered = True
            if "failed" in said:
                raise _failure(said)
            return _own_child(said["pid"])

    def _was_killed(self) -> bool:
        """Whether the PAM process was killed from outside, which says nothing against another try. A module that
        crashes may do so each time. The process is left for `close` to reap."""
        pidfd = os.pidfd_open(self.pid)
        try:
            if not wait_readable([pidfd], _STUCK_S):
                return False
            how = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
        finally:
            os.close(pidfd)
        return how is not None and how.si_code == os.CLD_KILLED and how.si_status == signal.SIGKILL

    def _refuse_stopped(self, stage: StartStage, before: bytes) -> bytes:
        """Return the mark of the PAM process's stop. Raises SpawnFailed if it is `before`, the one of the last look."""
        stopped = stop_mark(self.pid)
        if stopped and stopped == before:
            os.kill(self.pid, signal.SIGKILL)
            raise SpawnFailed(stage, errno.EAGAIN, "the PAM process was stopped and did not go on")
        return stopped

    def spared(self) -> int:
        """Return the pid of the PAM process, which must not be killed with the user's processes; 0 if there is none."""
        return self.pid

    def reaped(self, pid: int, how: str) -> None:
        """Record that the keeper's child `pid` has ended, in case it is the PAM process."""
        if pid == self.pid:
            self.pid, self._lost = 0, True
            self._log.error("the PAM process was killed: its user endpoint goes on", user=self._user, how=how)

    def close(self) -> None:
        """Have the session closed, by the process that opened it if it still runs, and wait for that a while."""
        if self._socket is not None:
            self._socket.close()
        if self._lost and self._answered:
            try:
                self.pid = _fork(lambda: pam_substitute(self._service, self._user))
            except SpawnFailed as failure:
                self._log.error("a session is not closed", user=self._user, error=str(failure))
        if self.pid:
            self._end(CLOSE_S + 1 if self._answered else _STUCK_S)

    def _end(self, patience_s: float) -> None:
        pidfd = os.pidfd_open(self.pid)
        hangs = not wait_readable([pidfd], patience_s)
        if hangs:
            os.kill(self.pid, signal.SIGKILL)
        os.close(pidfd)
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        if hangs or status == signal.SIGALRM:
            self._log.error("PAM did not close a session in time", user=self._user, seconds=f"{patience_s:g}")
        elif status:
            self._log.error("PAM did not close a session", user=self._user, status=status)


def _fork(work: Callable[[], NoReturn]) -> int:
    """Return the pid of a child that runs `work`. Raises SpawnFailed(FORK)."""
    try:
        pid = os.fork()
    except OSError as error:
        raise SpawnFailed(StartStage.FORK, error.errno or 0, "PAM") from None
    if pid == 0:
        work()
    return pid


def _failure(said: dict[str, object]) -> StartRefused | SpawnFailed:
    stage, detail = StartStage(int(str(said["failed"]))), str(said["detail"])
    if "code" in said:
        return StartRefused(stage, str(said["code"]), detail, str(said["public"]))
    return SpawnFailed(stage, int(str(said["errno"])), detail)


def _own_child(pid: int) -> int:
    """Return `pid` if it is a child of this process that is not reaped. Raises SpawnFailed(FORK)."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError as error:
        raise SpawnFailed(StartStage.FORK, error.errno or 0, "the user endpoint is not the keeper's child") from None
    return pid
