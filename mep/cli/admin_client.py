"""The command line's side of RUN/admin/socket: one connection to the monitor. The kernel vouches for both.

The messages are the boundary's own (mep/boundary/messages.py). The answers come from root's own process: the socket's
directory must be root's (or the owner's), and the kernel says who listens. Called by status, top, stop, drain and ban.
"""

from __future__ import annotations

import os
import pwd
import select
import socket
import stat
import struct
import time
from typing import TYPE_CHECKING, Self

from mep.boundary import messages as m
from mep.boundary.channel import Channel
from mep.boundary.errors import BoundaryViolation
from mep.boundary.runtime_files import ADMIN_DIR, ADMIN_SOCKET, running_monitor
from mep.cli.exit_codes import CliFailed, Exit

if TYPE_CHECKING:
    from types import TracebackType

    from mep.config.paths import EndpointPaths

ANSWER_S = 90.0
"""Longer than a reload or the end of a user endpoint takes."""
_PEER = struct.Struct("iII")


def owner_of(where: EndpointPaths) -> int | None:
    """Return the uid that the endpoint belongs to; None if there is no such endpoint, as far as can be seen."""
    for path in (where.runtime_dir, where.state_dir, where.config_dir):
        try:
            return path.stat().st_uid
        except OSError:
            continue
    return None


def account_name(uid: int) -> str:
    """Return the name of a uid; the number itself if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return f"uid {uid}"


def is_foreign(where: EndpointPaths) -> bool:
    """Whether the endpoint belongs to another account than this process's (which isn't root)."""
    return os.geteuid() != 0 and owner_of(where) not in {None, os.geteuid()}


def not_permitted(where: EndpointPaths, *, owner_only: bool = False) -> CliFailed:
    """Return the error for an account that may not act on this endpoint."""
    owner = owner_of(where)
    whose = account_name(owner) if owner is not None else "another account"
    members = "" if owner_only else ", or as a member of the group that admin_group in its config.yaml names"
    return CliFailed(
        f"not permitted: endpoint {where.name} belongs to {whose}; run this as that account{members}",
        Exit.NOT_PERMITTED,
    )


def require_permission(where: EndpointPaths) -> None:
    """Raise CliFailed for an ordinary account: it is not even told whether the endpoint runs."""
    if is_foreign(where) and not os.access(where.runtime_dir / ADMIN_DIR, os.X_OK):
        raise not_permitted(where)


def require_owner(where: EndpointPaths) -> None:
    """Raise CliFailed for an account that is neither root nor the owner, a member of the group included."""
    if is_foreign(where):
        raise not_permitted(where, owner_only=True)


def require_reader(where: EndpointPaths) -> None:
    """Raise CliFailed for an account that is neither root nor the owner, and may not read config.yaml either."""
    if is_foreign(where) and not os.access(where.config, os.R_OK):
        raise not_permitted(where, owner_only=True)


class AdminClient:
    """A connection to the monitor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @classmethod
    def connect(cls, where: EndpointPaths) -> Self | None:
        """Return a connection; None if no monitor listens. Raises CliFailed for an account that may not."""
        require_permission(where)
        directory = where.runtime_dir / ADMIN_DIR
        try:
            at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            found = os.fstat(at)
            if found.st_uid not in {0, os.geteuid()} or stat.S_IMODE(found.st_mode) & 0o027:
                raise CliFailed(f"{directory} is not as the monitor made it: it is not used")
            one.connect(f"/proc/self/fd/{at}/{ADMIN_SOCKET}")
            _, uid, _ = _PEER.unpack(one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
            if uid != found.st_uid:
                raise CliFailed(f"{directory}: another account listens there")
            return cls(Channel(one))
        except PermissionError:
            one.close()
            raise not_permitted(where) from None
        except OSError:
            one.close()
            return None
        except CliFailed:
            one.close()
            raise
        finally:
            os.close(at)

    @classmethod
    def required(cls, where: EndpointPaths) -> Self:
        """Return a connection. Raises CliFailed if no monitor runs, or one of a version without this socket."""
        client = cls.connect(where)
        if client is None and running_monitor(where.runtime_dir) is None:
            raise CliFailed(f"endpoint {where.name} is not running", Exit.NOT_RUNNING)
        if client is None:
            raise CliFailed(f"the monitor of {where.name} takes no orders: restart it with `mep restart {where.name}`")
        return client

    def ask(self, message: m.Message, timeout_s: float = ANSWER_S) -> tuple[m.AdminDone, list[m.Message], list[int]]:
        """Return the answer's end, the messages before it, and their descriptors. Raises CliFailed."""
        found: list[m.Message] = []
        descriptors: list[int] = []
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        try:
            self._channel.send(message)
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                received = self._channel.receive()
                if received is None:
                    raise CliFailed("the monitor closed the connection: its log says why")
                descriptors += received[1]
                if isinstance(received[0], m.AdminDone):
                    return received[0], found, descriptors
                found.append(received[0])
        except (OSError, BoundaryViolation) as error:
            raise CliFailed(f"the monitor's answer cannot be read: {error}") from None
        raise CliFailed(f"the monitor did not answer within {timeout_s:g} s", Exit.TIMEOUT)

    def order(self, message: m.Message, timeout_s: float = ANSWER_S) -> int:
        """Give an order and return how many it concerned. Raises CliFailed if it wasn't carried out."""
        done, _, _ = self.ask(message, timeout_s)
        if done.problem:
            raise CliFailed(done.problem)
        return done.count

    def listing(self, timeout_s: float = ANSWER_S) -> list[m.Message]:
        """Return every user endpoint and recent failure, and the latest restrictions."""
        found: list[m.Message] = []
        after = ""
        while True:
            done, rows, _ = self.ask(m.AdminList(after), timeout_s)
            found += rows
            ids = [one.uep_id for one in rows if isinstance(one, m.AdminEndpoint)]
            if not done.more or not ids:
                return found
            after = ids[-1]

    def restrictions(self, timeout_s: float = ANSWER_S) -> list[m.AdminRestriction]:
        """Return every drain and ban, the oldest first. Raises CliFailed, as a monitor of an older version makes it."""
        found: list[m.AdminRestriction] = []
        more = 1
        while more:
            last = found[-1] if found else m.AdminRestriction(0, 0, 0, "", "", "")
            done, rows, _ = self.ask(m.AdminRestrictions(last.local_user, last.kind), timeout_s)
            found += [one for one in rows if isinstance(one, m.AdminRestriction)]
            more = done.more if found and found[-1] is not last else 0
        return sorted(found, key=lambda one: one.since_ms)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the connection."""
        self.close()
