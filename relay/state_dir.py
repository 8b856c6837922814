"""The relay's state directory: its keys, its database, its lock, and where it listens.

Everything in it belongs to the relay's account with mode 0600. As root, every command first becomes that
account, so that nothing in it ever belongs to root. Called by the command line and the server.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from zmq import curve_public
from zmq.utils import z85

from mep.boundary import untraceable
from mep.boundary.file_trust import Trust, ours
from mep_wire.relay_keys import MAX_EARLIER, EarlierKeys, RelayKeys, rotation_statement

ACCOUNT = "mep-relay"
DEFAULT_AS_ROOT = Path("/var/lib/mep-relay")
LOCK = "serve.lock"


class StateRefused(Exception):
    """The state directory cannot be used. The text gives the reason and the remedy."""


def default_dir() -> Path:
    """Return where the state is unless told otherwise."""
    return DEFAULT_AS_ROOT if os.geteuid() == 0 else Path.home() / ".mep" / "relay"


def become_relay_account(directory: Path) -> None:
    """As root: make the directory for the relay's account and become that account irrevocably; else do nothing.

    Raises StateRefused if the account does not exist or the directory is another's.
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
        # By descriptor, so that the directory can't be replaced in between.
        made = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchown(made, account.pw_uid, account.pw_gid)
        os.close(made)
    untraceable.become(account.pw_uid, account.pw_gid)
    untraceable.close_to_tracers()  # its terminal may be root's
    if directory.stat().st_uid != account.pw_uid:
        raise StateRefused(f"{directory} does not belong to {ACCOUNT}: `chown -R {ACCOUNT} {directory}`")
    os.chdir("/")


def _trust() -> Trust:
    """Return the trust in root and in this account, called by its name."""
    try:
        return replace(ours(), chown_to=pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        return ours()


class _Earlier(msgspec.Struct, kw_only=True):
    """One pair of earlier keys in rotations.json. Bytes are in hexadecimal digits."""

    signing: str
    link: str
    signature: str
    """By the secret of `signing`, over the pair that followed."""
    secret: str = ""
    """The secret of `signing`, as long as it signs start requests too."""
    until: float = 0.0
    """When that ends, in seconds since the epoch."""

    @property
    def keys(self) -> RelayKeys:
        """The pair."""
        return RelayKeys(bytes.fromhex(self.signing), bytes.fromhex(self.link))


class _Pending(msgspec.Struct, kw_only=True):
    """Secrets that a rotation has decided upon and not yet written to signing.key and link.key."""

    signing: str
    link: str


class _Rotations(msgspec.Struct, kw_only=True):
    """rotations.json: the relay's earlier keys, oldest first."""

    earlier: list[_Earlier] = []
    pending: _Pending | None = None


_MAX_ROTATIONS_BYTES = 64 * 1024
_rotations_decoder = msgspec.json.Decoder(_Rotations)


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """The relay's own keys. `link_*` are CURVE keys, 32 bytes."""

    link_secret: bytes
    link_public: bytes
    signing: Ed25519PrivateKey
    earlier: tuple[EarlierKeys, ...] = ()
    """The pairs before, oldest first, each with its signature over the next."""
    overlap: tuple[tuple[Ed25519PrivateKey, float], ...] = ()
    """Earlier signing keys that sign too, newest first, each with the time until which it does."""

    @property
    def public(self) -> RelayKeys:
        """The keys that endpoints pin."""
        return RelayKeys(self.signing_public, self.link_public)

    @property
    def signing_public(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self.signing.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@dataclass(slots=True)
class StateDir:
    """An opened state directory."""

    directory: Path

    @classmethod
    def open(cls, directory: Path) -> StateDir:
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
        """Raise StateRefused, listing the files in the directory that another account could read, write or exchange."""
        trust = _trust()
        found = trust.problems(self.directory, secret=True)
        if not found:  # else its contents can't be trusted
            secret = [
                "link.key",
                "signing.key",
                "rotations.json",
                "keys.lock",
                self.database.name,
                f"{self.database.name}-wal",
                LOCK,
                self.audit_log.name,
                self.stories.name,
            ]
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
    def audit_log(self) -> Path:
        """The file that says who did what."""
        return self.directory / "audit.log"

    @property
    def stories(self) -> Path:
        """The events of `mep why`: see relay.dispatch.story_file."""
        return self.directory / "stories.sqlite"

    @property
    def listening(self) -> Path:
        """The file in which a running server publishes its addresses."""
        return self.directory / "relay.json"

    @property
    def data(self) -> Path:
        """The directory for pieces of data by reference, where the settings name no other storage."""
        return self.directory / "data"

    @property
    def control(self) -> Path:
        """The socket on which a running server takes commands."""
        return self.directory / "control.sock"

    def lock(self) -> int:
        """Take the lock that only one server may hold, until the process ends. Raises StateRefused."""
        descriptor = _trust().open(self.directory / LOCK, os.O_RDWR | os.O_CREAT, secret=True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StateRefused(f"another mep-relay serves {self.directory}: stop that one first") from error
        return descriptor

    def keys(self) -> Keys:
        """Return the relay's keys, made at first use. Raises StateRefused."""
        with self._keys_locked():
            return self._keys(self._rotations())

    def rotate_keys(self, overlap_s: float, *, new_link: bool = False, stolen: bool = False) -> Keys:
        """Replace the signing key (`new_link`: both) and return the new keys, which the next start of a server uses.

        The earlier pair signs the new one, and signs start requests too for `overlap_s`. `stolen`: it does neither.
        Raises StateRefused.
        """
        with self._keys_locked():
            rotations = self._rotations()
            now = self._keys(rotations)
            signing, link = os.urandom(32), os.urandom(32) if new_link else now.link_secret
            pending = _Pending(signing=signing.hex(), link=link.hex())
            if stolen:
                rotations = _Rotations(earlier=[], pending=pending)
            else:
                new = _public(link, Ed25519PrivateKey.from_private_bytes(signing))
                signature = now.signing.sign(rotation_statement(now.public, new))
                old = _Earlier(
                    signing=now.signing_public.hex(),
                    link=now.link_public.hex(),
                    signature=signature.hex(),
                    secret=now.signing.private_bytes_raw().hex(),
                    until=time.time() + overlap_s,
                )
                rotations = _Rotations(earlier=[*rotations.earlier, old][-MAX_EARLIER:], pending=pending)
            self._write_rotations(rotations)  # from here on the rotation is decided; `_rotations` completes it
            return self._keys(self._rotations())

    @contextmanager
    def _keys_locked(self) -> Iterator[None]:
        descriptor = _trust().open(self.directory / "keys.lock", os.O_RDWR | os.O_CREAT, secret=True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _keys(self, rotations: _Rotations) -> Keys:
        link, signing = self._secret("link.key"), Ed25519PrivateKey.from_private_bytes(self._secret("signing.key"))
        public = _public(link, signing)
        self._check_chain(rotations, public)
        return Keys(
            link_secret=link,
            link_public=public.link,
            signing=signing,
            earlier=tuple(EarlierKeys(one.keys, bytes.fromhex(one.signature)) for one in rotations.earlier),
            overlap=tuple(
                (Ed25519PrivateKey.from_private_bytes(bytes.fromhex(one.secret)), one.until)
                for one in reversed(rotations.earlier)
                if one.secret
            ),
        )

    def _rotations(self) -> _Rotations:
        """Return rotations.json. Completes a rotation that was cut short, and forgets secrets that sign no longer."""
        path = self.directory / "rotations.json"
        try:
            rotations = _rotations_decoder.decode(_trust().read(path, _MAX_ROTATIONS_BYTES, secret=True))
        except FileNotFoundError:
            return _Rotations()
        except (OSError, msgspec.MsgspecError) as error:
            raise StateRefused(f"cannot read {path}: {error}") from error
        before = msgspec.json.encode(rotations)
        if rotations.pending is not None:
            _write(self.directory / "link.key", bytes.fromhex(rotations.pending.link))
            _write(self.directory / "signing.key", bytes.fromhex(rotations.pending.signing))
            rotations.pending = None
        for one in rotations.earlier:
            if one.until <= time.time():
                one.secret = ""
        if msgspec.json.encode(rotations) != before:
            self._write_rotations(rotations)
        return rotations

    def _write_rotations(self, rotations: _Rotations) -> None:
        _write(self.directory / "rotations.json", msgspec.json.encode(rotations) + b"\n")

    def _check_chain(self, rotations: _Rotations, current: RelayKeys) -> None:
        try:
            pairs = [*(one.keys for one in rotations.earlier), current]
            for one, new in zip(rotations.earlier, pairs[1:], strict=True):
                key = Ed25519PublicKey.from_public_bytes(one.keys.signing)
                key.verify(bytes.fromhex(one.signature), rotation_statement(one.keys, new))
        except (InvalidSignature, ValueError):
            raise StateRefused(
                f"{self.directory / 'rotations.json'} does not lead to the keys in signing.key and link.key: restore "
                "the three from one backup, or remove it; then endpoints must be registered again by fingerprint"
            ) from None

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


def _public(link_secret: bytes, signing: Ed25519PrivateKey) -> RelayKeys:
    return RelayKeys(signing.public_key().public_bytes_raw(), z85.decode(curve_public(z85.encode(link_secret))))


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
