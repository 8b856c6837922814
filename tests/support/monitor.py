"""A real monitor with stand-ins for what it execs: the test itself plays manager and mapper, in raw bytes if it likes.

The monitor runs `Resolved.python`, here a shell script. For manager and mapper the script starts a puppet that hands
its three inherited descriptors to the test and sleeps. For user endpoints it starts `uep_standin.py`, which follows the
start document that the test wrote as the mapper.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import pwd
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self, TypeVar

from mep.boundary.channel import Channel
from mep.boundary.memfd import sealed_memfd
from mep.boundary.messages import (
    INCARNATION_BYTES,
    AdminDone,
    AdminEndpoint,
    AdminList,
    ManagerReady,
    Mapped,
    MapperReady,
    MapRequest,
    Message,
    StartAnswered,
    StartEndpoint,
)
from mep.boundary.resolved_config import Caps, ManagerSection, MapperSection, Policy, Resolved, to_json
from mep.boundary.runtime_files import start_ticks
from tests.support.accounts import LocalAccount, is_root

HERE = pathlib.Path(__file__).parent
WAIT_S = 60.0
_M = TypeVar("_M", bound=Message)

# -p: a shell would otherwise take the real gid, a group that the helper isn't in, for its effective one.
_INTERPRETER = """#!/bin/sh -p
case "$3" in
mep.manager) exec {python} -I {here}/puppet.py manager {control} ;;
mep.mapper) exec {python} -I {here}/puppet.py mapper {control} ;;
esac
exec {python} -I "$2"
"""


def new_uep_id() -> str:
    """Return an id for a user endpoint."""
    return str(uuid.uuid4())


def gone(pid: int, started: int) -> bool:
    """Tell whether a process has ended: it is a zombie, or doesn't exist, or another one has its pid."""
    if start_ticks(pid) != started:
        return True
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except OSError:
        return True


def processes_of(uid: int) -> list[int]:
    """Return the processes of an account, without those that have ended and wait for init."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == uid:
                state = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0]
                found += [] if state == b"Z" else [int(entry.name)]
    return found


class Puppet:
    """A manager or mapper that the monitor started, played by the test."""

    def __init__(self, kind: str, pid: int, descriptors: list[int]) -> None:
        self.kind, self.pid = kind, pid
        self.started = start_ticks(pid) or 0
        self.section, self.secret = descriptors[1], descriptors[2]
        self.socket = socket.socket(fileno=os.dup(descriptors[0]))
        self.channel = Channel.from_descriptor(descriptors[0], blocking=True)
        self.wait_at_most(int(WAIT_S))

    def wait_at_most(self, seconds: int) -> None:
        """Have `take` raise BlockingIOError after so long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))

    def close(self) -> None:
        """Let go of its descriptors: the monitor reads end-of-file."""
        if self.socket.fileno() < 0:
            return
        self.channel.close()
        self.socket.close()
        os.close(self.section)
        os.close(self.secret)

    def send(self, message: Message, *descriptors: int) -> None:
        """Send a well-formed message; closes the descriptors here."""
        self.channel.send(message, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def raw(self, frame: bytes, *descriptors: int) -> None:
        """Send any bytes with any descriptors."""
        socket.send_fds(self.socket, [frame], list(descriptors))

    def take(self, cls: type[_M]) -> tuple[_M, list[int]]:
        """Return the next message of class `cls`, dropping others."""
        while True:
            received = self.channel.receive()
            assert received is not None, f"{self.kind}: end of file instead of {cls.__name__}"
            if isinstance(received[0], cls):
                return received[0], received[1]

    def is_gone(self) -> bool:
        """Tell whether its process has ended."""
        return gone(self.pid, self.started)

    def kill(self) -> None:
        """SIGKILL it. The monitor may have done so already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class Peer:
    """An administrator's connection, played by the test."""

    def __init__(self, run: MonitorRun) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(60)
        self.socket.connect(str(run.run / "admin" / "socket"))
        self.channel = Channel(socket.socket(fileno=os.dup(self.socket.fileno())), blocking=True)

    def ask(self, message: Message) -> tuple[AdminDone, list[Message]]:
        self.channel.send(message)
        return self.rest()

    def rest(self) -> tuple[AdminDone, list[Message]]:
        found: list[Message] = []
        while True:
            received = self.channel.receive()
            assert received is not None, "closed"
            for descriptor in received[1]:
                os.close(descriptor)
            if isinstance(received[0], AdminDone):
                return received[0], found
            found.append(received[0])

    def close(self) -> None:
        self.channel.close()
        self.socket.close()

    def is_closed(self) -> bool:
        try:
            return not self.socket.recv(65536)
        except ConnectionError:
            return True


class MonitorRun:
    """One running monitor, in a private directory that every account can reach."""

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        caps: Caps | None = None,
        owner: LocalAccount | None = None,
        **changes: Any,
    ) -> None:
        self.owner = owner
        """Run as this account, in single-user mode (as root; otherwise the caller is the owner anyway)."""
        self.multi_user = is_root() and owner is None
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="meptest-monitor-", dir="/tmp"))
        self.root.chmod(0o755)
        self.run, self.audit, self.log = self.root / "run", self.root / "audit.jsonl", self.root / "log"
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.bind(str(self.root / "control"))
        (self.root / "control").chmod(0o777)
        self._control.listen(64)
        self._control.settimeout(WAIT_S)
        self._write_files()
        caps = caps or Caps(start_timeout_s=20.0, stop_grace_s=1.0)
        self.resolved = replace(self._resolved(policy or Policy(), caps), **changes)
        self.process: subprocess.Popen[bytes] | None = None
        if owner is not None:
            for path in (self.root, *self.root.iterdir()):
                os.chown(path, owner.uid, owner.gid)
        self.before: list[str] = []
        """Command in front of the monitor's own, which it execs."""
        self.puppets: list[Puppet] = []
        self._early: list[Puppet] = []

    def _write_files(self) -> None:
        interpreter = self.root / "python"
        text = _INTERPRETER.format(python=sys.executable, here=self.root, control=self.root / "control")
        interpreter.write_text(text)
        interpreter.chmod(0o755)
        for name in ("puppet.py", "uep_standin.py"):
            shutil.copy(HERE / name, self.root / name)
            (self.root / name).chmod(0o644)
        for name in ("link.key", "unseal.key"):
            (self.root / name).write_bytes(secrets.token_bytes(32))
            (self.root / name).chmod(0o400)

    def _resolved(self, policy: Policy, caps: Caps) -> Resolved:
        multi = self.multi_user
        endpoint_id = new_uep_id()
        manager = ManagerSection(
            endpoint_id=endpoint_id, relay_link_address="tcp://127.0.0.1:1", relay_link_key="00" * 32,
            account="mep" if multi else "", link_key_path=str(self.root / "link.key"),
        )  # fmt: skip
        mapper = MapperSection(
            endpoint_id=endpoint_id, relay_signing_key="00" * 32, account="mep-idmap" if multi else "",
            unseal_key_path=str(self.root / "unseal.key"), mapping_path="", owner_identities=[],
            own_user="" if multi else self._owner_name(),
        )  # fmt: skip
        return Resolved(
            name="test", multi_user=multi, python=str(self.root / "python"),
            user_endpoint_main=str(self.root / "uep_standin.py"), state_dir=str(self.root),
            runtime_dir=str(self.run), log_path="", audit_path=str(self.audit), user_environment_path="/usr/bin:/bin",
            own_accounts=["mep", "mep-idmap"] if multi else [], policy=policy, caps=caps,
            manager=manager, mapper=mapper, resolver_argv=[],
        )  # fmt: skip

    def _owner_name(self) -> str:
        return self.owner.name if self.owner is not None else pwd.getpwuid(os.getuid()).pw_name

    # --- the process ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the monitor and wait for nothing."""
        config = sealed_memfd("config", to_json(self.resolved))
        bundle = sealed_memfd("bundle", b"the bundle")
        argv = [
            *self.before,
            sys.executable,
            "-I",
            "-m",
            "mep.root.monitor",
            "--config-fd",
            str(config),
            "--bundle-fd",
            str(bundle),
        ]
        who: dict[str, Any] = {}
        if self.owner is not None:
            who = {"user": self.owner.uid, "group": self.owner.gid, "extra_groups": []}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv, pass_fds=(config, bundle), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **who
            )
        os.close(config)
        os.close(bundle)
        return self

    @property
    def pid(self) -> int:
        """The monitor's pid."""
        assert self.process is not None
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = WAIT_S) -> int:
        """Signal the monitor, let manager and mapper go, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        for puppet in self.puppets:
            puppet.close()
        while self.process.poll() is None:
            # A puppet that no test took waits to hand over its descriptors.
            if select.select([self._control], [], [], 0.02)[0]:
                self._accept().close()
            seconds -= 0.02
            if seconds < 0:
                raise subprocess.TimeoutExpired("monitor", WAIT_S)
        return self.process.returncode

    def log_text(self) -> str:
        """Everything logged so far, by the monitor and its keepers."""
        return self.log.read_text(errors="replace")

    def audit_records(self) -> list[dict[str, Any]]:
        """The audit log, parsed."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []

    def status(self) -> dict[str, Any]:
        """status.json, or an empty mapping."""
        with contextlib.suppress(OSError):
            return dict(json.loads((self.run / "status.json").read_text()))
        return {}

    def listed(self) -> list[AdminEndpoint]:
        """Its user endpoints, as administrators are told at the socket."""
        peer = Peer(self)
        try:
            return [one for one in peer.ask(AdminList(""))[1] if isinstance(one, AdminEndpoint)]
        finally:
            peer.close()

    def record(self, uep_id: str) -> dict[str, Any]:
        """A keeper's record, or an empty mapping."""
        with contextlib.suppress(OSError):
            return dict(json.loads(self.record_path(uep_id).read_text()))
        return {}

    def record_path(self, uep_id: str) -> pathlib.Path:
        """The file of a keeper's record."""
        return self.run / "keepers" / uep_id / "record.json"

    def end(self, uep_id: str) -> None:
        """Kill the process of a user endpoint."""
        os.kill(self.record(uep_id)["uep_pid"], signal.SIGKILL)

    def forget(self, uep_id: str, *keys: str) -> None:
        """Take `keys` out of a keeper's record, as a keeper of a version without them has written it."""
        kept = {key: value for key, value in self.record(uep_id).items() if key not in keys}
        self.record_path(uep_id).write_text(json.dumps(kept))

    # --- its children ---------------------------------------------------------------------------------

    def puppet(self, kind: str) -> Puppet:
        """Return the next manager or mapper that the monitor starts."""
        for early in self._early:
            if early.kind == kind:
                self._early.remove(early)
                return early
        while True:
            puppet = self._accept()
            self.puppets.append(puppet)
            if puppet.kind == kind:
                return puppet
            self._early.append(puppet)

    def _accept(self) -> Puppet:
        connection = self._control.accept()[0]
        hello, descriptors, _, _ = socket.recv_fds(connection, 256, 8)
        connection.close()
        name, pid = hello.decode().split()
        return Puppet(name, int(pid), descriptors)

    def ready(self) -> tuple[Puppet, Puppet]:
        """Return manager and mapper, both having said that they are ready."""
        mapper, manager = self.puppet("mapper"), self.puppet("manager")
        mapper.send(MapperReady(epoch=secrets.token_bytes(16)))
        manager.send(ManagerReady(version="test"))
        return manager, mapper

    def close(self) -> None:
        """End the monitor and everything that it left."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop(seconds=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._kill_recorded()
        for puppet in self.puppets:
            if not puppet.is_gone():
                puppet.kill()
            puppet.close()
        self._control.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _kill_recorded(self) -> None:
        """Kill the keepers and user endpoints of a killed monitor, by pid and start time."""
        keepers = self.run / "keepers"
        for path in keepers.glob("*/record.json") if keepers.exists() else ():
            record = json.loads(path.read_text())
            for kind in ("keeper", "uep"):
                pid = record[f"{kind}_pid"]
                if pid and not gone(pid, record[f"{kind}_start"]):
                    os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if sys.exc_info()[0] is not None:
            print(self.log_text())
        self.close()
        remove_empty_groups()


def remove_empty_groups() -> None:
    """Remove the cgroups of killed monitors and keepers of tests; those in use can't be removed."""
    for tree in map(pathlib.Path, ("/sys/fs/cgroup/mep", "/sys/fs/cgroup/unified/mep")):
        for directory, _, _ in os.walk(tree / "endpoint-test", topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)


def ask(manager: Puppet, ref: int, document: bytes = b"request") -> None:
    """As the manager, ask for a start."""
    manager.send(StartEndpoint(ref=ref), sealed_memfd("request", document))


def map_next(
    mapper: Puppet,
    user: str,
    *,
    uep_id: str = "",
    person: str = "alice",
    literal: bool = False,
    incarnation: bytes = b"",
    **behaviour: Any,
) -> str:
    """As the mapper, map the next request, of `person`, to `user`; the stand-in does what `behaviour` says.

    Return the uep id.
    """
    request, descriptors = mapper.take(MapRequest)
    for descriptor in descriptors:
        os.close(descriptor)
    uep_id = uep_id or new_uep_id()
    document = sealed_memfd("verified", json.dumps({"mode": "ready", **behaviour}).encode())
    who = json.dumps({"username": f"{person}@example.edu"})
    digest = hashlib.sha256(person.encode()).digest()
    name = incarnation or os.urandom(INCARNATION_BYTES)
    answer = Mapped(request.ref, uep_id, user, who, f"corr-{request.ref}", digest, name, int(literal))
    mapper.send(answer, document)
    return uep_id


def start_as(
    manager: Puppet, mapper: Puppet, user: str, *, ref: int = 1, uep_id: str = "", **behaviour: Any
) -> tuple[str, StartAnswered]:
    """Play a whole start and return the user endpoint's id and the answer."""
    ask(manager, ref)
    uep_id = map_next(mapper, user, uep_id=uep_id, **behaviour)
    return uep_id, manager.take(StartAnswered)[0]


@contextlib.contextmanager
def running_monitor(**options: Any) -> Iterator[tuple[MonitorRun, Puppet, Puppet]]:
    """A monitor with manager and mapper ready, for the length of a `with` block."""
    with MonitorRun(**options) as run:
        manager, mapper = run.ready()
        yield run, manager, mapper
