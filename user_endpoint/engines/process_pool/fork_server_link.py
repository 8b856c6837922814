"""One fork server as the process engine sees it: orders to it, reports from it, and whether it still answers.

Nothing here waits: a server that does not report ready, or does not answer a question within a time, is lost, and
the engine starts another. A task may stop its fork server or fill its machine, since all of them are the same
user's. Tasks must not wait for ever after that. Called by the process engine alone.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Final

from user_endpoint.engines.base import OWN_PYTHON
from user_endpoint.workers import datagrams
from user_endpoint.workers.fork_server import ServerHandle

START_S: Final = 120.0
"""Longest time that worker_init and the start of another Python may take together."""
ANSWER_S: Final = 30.0
"""After this time without an answer a fork server is given up."""
KILL_S: Final = 10.0
"""So long after a worker was ordered killed its task ends, whether or not the worker is gone."""


class ServerLost(Exception):
    """The fork server has ended, was never ready, or does not answer. The text is for people."""


class ForkServerLink:
    """See the module. `now` is the engine's clock, in seconds."""

    def __init__(self, server: ServerHandle, now: float) -> None:
        self._server, self._since = server, now
        self.ready = server.ready
        self.python = OWN_PYTHON if server.ready else ""
        """The Python in which it runs; empty before it has reported that."""
        self._asked_at: float | None = None
        server.sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor on which reports come."""
        return self._server.sock.fileno()

    @property
    def own_environment(self) -> bool:
        """Whether its environment was set up by worker_init."""
        return self._server.own_environment

    def order(self, order: tuple[object, ...], descriptor: int = -1) -> bool:
        """Send an order. False if the socket was full or closed: the next `reports` or `check` says which."""
        try:
            datagrams.send(self._server.sock, order, descriptor)
        except OSError:
            return False
        return True

    def ask(self, now: float) -> None:
        """Ask for a sign of life, unless a question is open. Asked with every order to fork or kill."""
        if self._asked_at is None:
            self._asked_at = now
            self.order(("ping",))

    def reports(self) -> Iterator[tuple[Any, ...]]:
        """Yield its reports. Raises ServerLost."""
        while True:
            try:
                report, _ = datagrams.receive(self._server.sock)
            except BlockingIOError:
                return
            except datagrams.PeerGone:
                text = "the process that starts workers was killed"
                raise ServerLost(text if self.ready else self._server.failure() or text) from None
            match report:
                case ("ready", str(python)):
                    self.ready, self.python = True, python
                    if said := self._server.failure():  # no failure, but a misspelt command of worker_init, say
                        sys.stderr.write(f"{'worker_init' if self.own_environment else 'workers'}: {said}\n")
                        sys.stderr.flush()
                case ("pong",):
                    self._asked_at = None
                case (str(), *_):
                    yield report
                case _:
                    raise ServerLost("the process that starts workers was disturbed by a task")

    def check(self, now: float) -> None:
        """Raises ServerLost where it has kept silent for too long."""
        if not self.ready and now - self._since > START_S:
            raise ServerLost(self._server.failure() or f"worker_init took over {START_S:.0f} s")
        if self.ready and self._asked_at is not None and now - self._asked_at > ANSWER_S:
            with contextlib.suppress(ServerLost):  # it may have answered in this very moment
                list(self.reports())
            if self._asked_at is not None:
                raise ServerLost(f"the process that starts workers did not answer for {ANSWER_S:.0f} s")

    def stop(self, grace_s: float) -> None:
        """End it, and every worker with it."""
        self._server.stop(grace_s)
