"""The relay's state directory: its keys, its database, its lock, and where it listens.

Everything in it belongs to the relay's account with mode 0600. As root, every command first becomes that
account, so that nothing in it ever belongs to root. Called by the command line and the server.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from zmq import curve_public
from zmq.utils import z85

from mep.boundary.file_trust import Trust, ours

ACCOUNT = "mep-relay"
DEFAULT_AS_ROOT = Path("/var/lib/mep-relay")
LOCK = "serve.lock"


class StateRefused(Exception):
    """The state directory cannot be used. The text says why and what to do."""


def default_dir() -> Path:
    """Return where the state is unless told otherwise."""
    return DEFAULT_AS_ROOT if os.geteuid() == 0 else Path.home() / ".mep" / "relay"


def become_relay_account(directory: Path) -> None:
    """As root: make the directory for the relay's account and become that account for good; else nothing.

    Raises StateRefused where the account does not exist or the directory is another's.
    """
    if os.geteuid() != 0:
        return
    try:
        account = pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise StateRefused(
            f"there is no account {ACCOUNT}: `make install` creates it, or run `useradd --system {ACCOUNT}`; "
            "mep-relay does not run as root"
        ) from error
    if not directory.exists():
        trust = Trust(frozenset({account.pw_uid}))
        if problems := trust.problems(next(one for one in directory.parents if os.path.lexists(one))):
            raise StateRefused("; ".join(problems))
        directory.mkdir(parents=True, mode=0o700)
        # By descriptor: nobody may put something else in its place in between.
        made = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchown(made, account.pw_uid, account.pw_gid)
        os.close(made)
    os.setgroups([])
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    if directory.stat().st_uid != account.pw_uid:
        raise StateRefused(f"{directory} does not belong to {ACCOUNT}: `chown -R {ACCOUNT} {directory}`")
    os.chdir("/")


def _trust() -> Trust:
    """Return the trust in root and in this account, called by its name."""
    try:
        return replace(ours(), chown_to=pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        return ours()


@dataclass(frozen=True, slots=True)
class Keys:
    """The relay's own keys. `link_*` are CURVE keys, 32 bytes."""

    link_secret: bytes
    link_public: bytes
    signing: Ed25519PrivateKey

    @property
    def signing_public(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self.signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass(slots=True)
class State:
    """An opened state directory."""

    directory: Path

    @classmethod
    def open(cls, directory: Path) -> State:
        """Make the directory if need be. Raises StateRefused."""
        os.umask(0o077)
        try:
            directory.mkdir(parents=True, mode=0o700, exist_ok=True)
            mine = os.access(directory, os.R_OK | os.W_OK | os.X_OK)
        except OSError as error:
            raise StateRefused(f"cannot make {directory}: {error.strerror}") from error
        if not mine:
            raise StateRefused(f"{directory} cannot be written by this account")
        state = cls(directory)
        state.refuse_untrusted()
        return state

    def refuse_untrusted(self) -> None:
        """Raise StateRefused, listing what in the directory another account could read, write or exchange."""
        trust = _trust()
        found = trust.problems(self.directory, secret=True)
        if not found:  # else what is in it may not be what it seems
            secret = ["link.key", "signing.key", self.database.name, f"{self.database.name}-wal", LOCK]
            found = [
                problem for name in secret if os.path.lexists(path := self.directory / name)
                for problem in trust.problems(path, secret=True)
            ]  # fmt: skip
        if found:
            raise StateRefused("; ".join(found))

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.directory / "relay.db"

    @property
    def listening(self) -> Path:
        """What a running server says of itself."""
        return self.directory / "relay.json"

    def lock(self) -> int:
        """Take the lock that only one server may hold, until the process ends. Raises StateRefused."""
        descriptor = _trust().open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, secret=True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateRefused(f"another mep-relay serves {self.directory}") from error
        return descriptor

    def keys(self) -> Keys:
        """Return the relay's keys, made at first use."""
        link = self._secret("link.key")
        public = z85.decode(curve_public(z85.encode(link)))
        return Keys(link, public, Ed25519PrivateKey.from_private_bytes(self._secret("signing.key")))

    def _secret(self, name: str) -> bytes:
        path = self.directory / name
        try:
            secret = _trust().read(path, 33, secret=True)
        except FileNotFoundError:
            secret = os.urandom(32)
            _write(path, secret)
        except OSError as error:
            raise StateRefused(f"cannot read {path}: {error.strerror}") from error
        if len(secret) != 32:
            raise StateRefused(f"{path} is not a key of 32 bytes; without it no endpoint knows this relay")
        return secret

    def write_listening(self, url: str, link_address: str) -> None:
        """Say where the server listens."""
        text = json.dumps({"url": url, "link_address": link_address, "pid": os.getpid()})
        _write(self.listening, text.encode() + b"\n")

    def remove_listening(self) -> None:
        """The server has ended."""
        self.listening.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 so that it is there whole or not at all, also after a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
