"""RUN/admin/socket: administrators' commands reach the monitor here. The kernel says who they are.

The directory admits root (single-user: the owner) and the configured group alone. The monitor checks each peer again,
by SO_PEERCRED and SO_PEERGROUPS. Members that are the endpoint's own accounts are refused. It trusts no message: a
connection carries the boundary's fixed messages, each a row of the table in permissions.py, at a bounded rate. A peer
that breaks the rules loses its connection. Called by monitor.py.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
from collections.abc import Callable

from mep.boundary.channel import Channel
from mep.boundary.errors import BoundaryViolation
from mep.boundary.runtime_files import ADMIN_DIR, ADMIN_SOCKET
from mep.root.kernel.unix_socket import listen, peer_of
from mep.root.monitor.child import Bucket, Child, ChildKind, Phase
from mep.root.monitor.event_loop import READ, PollLoop
from mep.root.monitor.fd_closer import Closer
from mep.root.monitor.log_budget import DayBudget
from mep.root.monitor.part import Part, Shared
from mep.root.monitor.runtime_dir import ensure_directory

MAX_PEERS = 32
MAX_MEMBERS = 16
"""Connections of the group's members, so that root always finds room."""
RATE, BURST = 50.0, 2000.0
"""Messages a second of one connection. `mep top` of a thousand user endpoints sends 16 every 2 s."""
IDLE_S = 600.0
"""A connection that has said nothing for so long is closed."""
MAX_CLOSING = 64
"""Children that close descriptors of peers. While there are so many, no connection is taken."""
_PAUSE_S = 0.5
_LINE_BYTES = 256
_BACKLOG = 16
_SO_PEERGROUPS = 59
_MAX_GROUPS_BYTES = 1024
"""As much as CPython's getsockopt takes: 256 groups. A member of more is refused, unless it is root."""
_NO_LOGIN = 2**32 - 1


class AdminPeer(Child):
    """One administrator's connection. It is no child of ours: nothing here ever signals its process."""

    def __init__(self, channel: Channel, pid: int, uid: int, loop: PollLoop) -> None:
        super().__init__(ChildKind.ADMIN, pid, channel, Phase.SERVING, loop)
        self.uid, self.login_uid = uid, _login_uid(pid)
        self.name = f"administrator[{uid}]"
        self.bucket = Bucket(RATE, BURST, loop.clock)
        self.heard_at = loop.clock()

    @property
    def is_privileged(self) -> bool:
        """Whether it is root (single-user: the owner), and no member of the group."""
        return self.uid in {0, os.geteuid()}

    @property
    def reads(self) -> bool:
        """Whether no answer waits for it here."""
        return not self._queue

    def signal(self, number: signal.Signals) -> None:
        """Do nothing: the process is another's."""


class AdminSocket(Part):
    """The listening socket and its connections."""

    def __init__(self, shared: Shared, closer: Closer, budget: DayBudget) -> None:
        """`closer` closes what peers have sent: to close their descriptors may block. `budget` is for lines that
        members cause."""
        super().__init__(shared)
        self._closer, self._budget = closer, budget
        self._take: Callable[[AdminPeer], None] = lambda _: None
        self._peers: list[AdminPeer] = []
        self._listener: socket.socket | None = None
        self._admitted_gid = -1

    @property
    def _gid(self) -> int:
        return self._configuration.resolved.admin_gid

    def open(self, take: Callable[[AdminPeer], None]) -> None:
        """Listen. `take` reads a peer's messages, and may raise BoundaryViolation.

        An endpoint without this socket still serves people, so an error is logged and no more.
        """
        self._take = take
        try:
            self._listener = self._listen()
        except OSError as error:
            self._log.error("no socket for administrators' commands", error=str(error))
            return
        self._loop.watch(self._listener.fileno(), self._accept)

    def _listen(self) -> socket.socket:
        directory = f"{self._configuration.resolved.runtime_dir}/{ADMIN_DIR}"
        ensure_directory(directory, 0o700)
        listener = listen(directory, ADMIN_SOCKET, backlog=_BACKLOG)
        try:
            self._admit(directory)
        except OSError:
            listener.close()
            raise
        return listener

    def _admit(self, directory: str) -> None:
        """Give directory and socket to the configured group, or to no group."""
        path, gid = f"{directory}/{ADMIN_SOCKET}", self._gid
        self._admitted_gid = gid
        if os.geteuid() == 0:
            os.chown(path, 0, max(gid, 0), follow_symlinks=False)
            os.chown(directory, 0, max(gid, 0), follow_symlinks=False)
        os.chmod(path, 0o660 if gid >= 0 else 0o600)
        os.chmod(directory, 0o710 if gid >= 0 else 0o700)
        found = os.stat(directory, follow_symlinks=False)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o027:
            raise PermissionError(f"{directory} is not as it was made")

    def regroup(self) -> None:
        """Take over another group, after a reload, and close the connections of those who may no longer have one."""
        if self._listener is None or self._gid == self._admitted_gid:
            return
        try:
            self._admit(f"{self._configuration.resolved.runtime_dir}/{ADMIN_DIR}")
        except OSError as error:
            self._log.error("the administrators' socket keeps its former group", error=str(error))
        for peer in [one for one in self._peers if one.uid not in {0, os.geteuid()}]:
            self._close(peer)  # it connects again if it may

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            if len(self._closer.pids) >= MAX_CLOSING:
                raise BlockingIOError
            connection, _ = self._listener.accept()
        except OSError:  # the connection waits, and the loop must not turn
            listener = self._listener.fileno()
            self._loop.want(listener, 0)
            self._loop.after(_PAUSE_S, lambda: self._loop.want(listener, READ))
            return
        channel = Channel(connection)
        channel.dispose = self._closer.close
        pid, uid, gid = peer_of(connection)
        members = sum(one.uid != 0 for one in self._peers)
        privileged = uid in {0, os.geteuid()}
        if not privileged and not self._is_member(uid, gid, connection):
            if self._budget.take(_LINE_BYTES):
                self._log.warning("refused an administrator's connection", uid=uid, gid=gid, pid=pid)
            channel.close()
            return
        if len(self._peers) >= MAX_PEERS or (not privileged and members >= MAX_MEMBERS):
            if privileged or self._budget.take(_LINE_BYTES):
                self._log.warning("too many administrators' connections", uid=uid, pid=pid)
            channel.close()
            return
        peer = AdminPeer(channel, pid, uid, self._loop)
        self._peers.append(peer)
        self._loop.watch(peer.channel.fileno(), lambda: self._readable(peer))
        self._loop.after(IDLE_S, lambda: self._idle(peer))

    def _is_member(self, uid: int, gid: int, connection: socket.socket) -> bool:
        if self._gid < 0 or uid in self._configuration.own_uids:
            return False
        try:
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
        except OSError:
            data = b""
        groups = {group for (group,) in struct.iter_unpack("I", data[: len(data) // 4 * 4])}
        return self._gid in {gid, *groups}

    def _readable(self, peer: AdminPeer) -> None:
        peer.heard_at = self._loop.clock()
        peer.flush()
        try:
            self._take(peer)
        except BoundaryViolation as violation:
            peer.fault = str(violation)
        if peer.fault and (peer.is_privileged or self._budget.take(2 * _LINE_BYTES)):
            self._log.error("boundary violation: closing the connection", peer=peer.name, fault=peer.fault)
            self._audit.write("violation", child=peer.name, phase=peer.phase.name, fault=peer.fault)
        if peer.fault or not peer.open:
            self._close(peer)

    def _idle(self, peer: AdminPeer) -> None:
        left = peer.heard_at + IDLE_S - self._loop.clock()
        if peer in self._peers and left > 0:
            self._loop.after(left, lambda: self._idle(peer))
        else:
            self._close(peer)

    def _close(self, peer: AdminPeer) -> None:
        if peer not in self._peers:
            return
        self._peers.remove(peer)
        peer.close()  # what others still send to it is dropped


def _login_uid(pid: int) -> int:
    """Return the uid with which the peer's session began (sudo keeps it), -1 if there is none. For the audit alone."""
    try:
        with open(f"/proc/{pid}/loginuid", "rb") as file:
            uid = int(file.read(16))
    except (OSError, ValueError):
        return -1
    return -1 if uid == _NO_LOGIN else uid
