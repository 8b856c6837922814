"""Logins on this machine: one profile for each relay, a file with its tokens, and which profile is the default.

They lie in the platform's configuration directory: `$XDG_CONFIG_HOME/mep` or `~/.config/mep`, on macOS
`~/Library/Application Support/mep`, on Windows `%APPDATA%\\mep`. A process that changes a profile holds its lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mep_sdk.errors import ProfileUnknown
from mep_sdk.private_files import private_directory, read_private, write_private
from mep_wire.errors import NotConfigured

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOCK_WAIT_S = 60.0
"""Longer than one exchange of tokens takes, its timeouts included."""
_LOOK_S = 0.05
_here = threading.Lock()
"""Held with a file's lock, which on some file systems belongs to the whole process."""


class Profile(msgspec.Struct, kw_only=True):
    """One login as it is stored. No text form of it holds a token."""

    relay_url: str
    access_token: str
    refresh_token: str = ""
    expires_at: float = 0.0
    """Seconds since the epoch; 0 if the relay did not say."""
    scope: str = ""
    username: str = ""

    def __repr__(self) -> str:
        return f"Profile({self.relay_url!r}, username={self.username!r})"


_decoder = msgspec.json.Decoder(Profile)


def config_dir() -> Path | None:
    """Return the directory for the SDK's settings; None for an account without a home."""
    env = os.environ
    if sys.platform == "win32" and env.get("APPDATA"):
        return Path(env["APPDATA"], "mep")
    if sys.platform not in ("win32", "darwin") and Path(env.get("XDG_CONFIG_HOME", "")).is_absolute():
        return Path(env["XDG_CONFIG_HOME"], "mep")
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home.joinpath(*("Library", "Application Support") if sys.platform == "darwin" else (".config",), "mep")


def profile_file(name: str) -> Path:
    """Return where a profile is stored. Raises NotConfigured."""
    if not NAME.fullmatch(name):
        remedy = f"{name[:64]!r} is no name for one: use letters, digits, dots, hyphens and underscores."
        raise NotConfigured(what="The profile", remedy=remedy)
    found = config_dir()
    if found is None:
        raise NotConfigured(what="A home directory", remedy="Set HOME or XDG_CONFIG_HOME, or pass token=...")
    return found / "profiles" / f"{name}.json"


def find_profile(name: str) -> Profile | None:
    """Return a profile, None if there is none. Raises NotConfigured, SettingsFileUnsafe."""
    path = profile_file(name)
    text = read_private(path)
    if text is None:
        return None
    try:
        return _decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        remedy = f"{path} cannot be read: {error}. Log in again: mep-sdk login --profile {name}"
        raise NotConfigured(what="The profile", remedy=remedy) from error


def get_profile(name: str) -> Profile:
    """Return a profile. Raises ProfileUnknown, NotConfigured, SettingsFileUnsafe."""
    found = find_profile(name)
    if found is None:
        raise ProfileUnknown(name=name, known=", ".join(profile_names()) or "none")
    return found


def save_profile(name: str, profile: Profile) -> None:
    """Store a profile. The caller holds its lock. Raises NotConfigured."""
    write_private(profile_file(name), msgspec.json.format(msgspec.json.encode(profile)))


def remove_profile(name: str) -> None:
    """Remove a profile. The caller holds its lock. Raises NotConfigured."""
    try:
        profile_file(name).unlink(missing_ok=True)
    except OSError as error:
        raise NotConfigured(what="The SDK", remedy=f"The profile {name} cannot be removed: {error}.") from error


def profile_names() -> list[str]:
    """Return the names of the profiles, sorted."""
    found = config_dir()
    if found is None or not (found / "profiles").is_dir():
        return []
    return sorted(each.stem for each in (found / "profiles").glob("*.json") if NAME.fullmatch(each.stem))


def default_profile() -> str | None:
    """Return the name of the default profile: the chosen one, or the only one."""
    names = profile_names()
    found = config_dir()
    chosen = (read_private(found / "default-profile") if found else None) or b""
    name = chosen.decode(errors="replace").strip()
    if name in names:
        return name
    return names[0] if len(names) == 1 else None


def choose_default(name: str) -> None:
    """Make a profile the default. Raises ProfileUnknown, NotConfigured."""
    get_profile(name)
    write_private(profile_file(name).parent.parent / "default-profile", f"{name}\n".encode())


def profile_of(relay_url: str) -> str | None:
    """Return the name of a profile for this relay, the default one first. Unreadable profiles are passed over."""
    names = profile_names()
    first = default_profile()
    for name in sorted(names, key=lambda each: (each != first, each)):
        with contextlib.suppress(NotConfigured):
            found = find_profile(name)
            if found is not None and found.relay_url.rstrip("/") == relay_url.rstrip("/"):
                return name
    return None


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a profile's lock, which all processes share. Raises NotConfigured, also after LOCK_WAIT_S."""
    path = profile_file(name).with_suffix(".lock")
    deadline = time.monotonic() + LOCK_WAIT_S
    if not _here.acquire(timeout=LOCK_WAIT_S):
        raise _still_held(path)
    try:
        number = _opened(path)
        try:
            while not _taken(number, path):
                if time.monotonic() > deadline:
                    raise _still_held(path)
                time.sleep(_LOOK_S)
            yield
        finally:
            os.close(number)  # gives the lock back
    finally:
        _here.release()


def _opened(path: Path) -> int:
    try:
        private_directory(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise NotConfigured(what="The SDK", remedy=f"{path} cannot be written: {error}.") from error


def _taken(number: int, path: Path) -> bool:
    """Return whether the lock is held now. Raises NotConfigured if this file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise NotConfigured(what="The SDK", remedy=f"{path} cannot be locked: {error}.") from error
    return True


def _still_held(path: Path) -> NotConfigured:
    return NotConfigured(what="The SDK", remedy=f"Another process has held {path} for {LOCK_WAIT_S:.0f} s.")
