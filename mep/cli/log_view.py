"""`mep logs`: the endpoint's log by way of the monitor, and a user endpoint's own log as its person.

The monitor hands over a descriptor of its log, which is how a member of the administrators' group reads it. A user
endpoint's own log is a file of the person's: a child that has become that person opens it, so that no link or pipe in a
home directory means anything to root. Called by status_commands.py.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import socket
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mep.boundary import messages as m
from mep.boundary.text import printable
from mep.cli.admin_client import AdminClient, is_foreign
from mep.cli.endpoint_state import describe_all
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.journal import JOURNALCTL, Journal, JournalUnreadable
from mep.cli.log_lines import as_text
from mep.cli.unprivileged_child import UnprivilegedChild

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

LOOK_AGAIN_S = 0.25
QUIET_S = 60.0
"""How long the person's log may take: a home directory may be slow."""
_JOURNAL_LINES = 20_000
"""Most lines of the journal that are searched."""
_CHUNK = 32 * 1024
_TAIL_BYTES = 4 * 1024 * 1024
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def show_logs(where: EndpointPaths, subject: str | None, *, lines: int, follow: bool) -> None:
    """Print the last `lines` lines, and with `follow` those that come. Raises CliFailed."""
    own = _own_log(where, subject) if subject is not None and not is_foreign(where) else None
    wanted = _about(subject, own["uep_id"] if own is not None else "")
    tail = _tail(where, wanted)
    mark = f"[{where.name}] " if own is not None else ""
    _show(tail.last(lines), mark)
    if own is None:
        while follow:
            time.sleep(LOOK_AGAIN_S)
            _show(tail.more(), mark)
        return
    click.echo(printable(f"--- {own['log_path']}, as {own['local_user']}:"), err=True)
    account = pwd.getpwnam(own["local_user"]) if os.geteuid() == 0 else None
    work = partial(_send_log, own["log_path"], lines, follow)
    theirs, rest = printable(f"[{own['local_user']}] "), b""
    with UnprivilegedChild(work, account) as child:
        while chunk := _chunk(child, tail, mark, follow=follow):
            *whole, rest = (rest + chunk).split(b"\n")
            _show((_text(line) for line in whole), theirs)
            rest = rest[-_CHUNK:]
    _show([_text(rest)] if rest else [], theirs)


def _show(lines: Iterable[str], mark: str) -> None:
    """Print lines, each with the mark of its log: no line of a person's can be taken for one of the endpoint's."""
    for line in lines:
        click.echo(mark + line)


def _text(line: bytes) -> str:
    """Return a line as text for people, whatever the log's format."""
    return printable(as_text(line.decode("utf-8", "replace")))


def _tail(where: EndpointPaths, wanted: Callable[[str], bool]) -> _Tail | _JournalTail:
    """Return the end of the endpoint's log: of its file, else of systemd's journal. Raises CliFailed."""
    try:
        return _Tail(partial(_open_log, where), wanted)
    except _NoFile as error:
        if not Path(JOURNALCTL).exists():
            raise
        click.echo(printable(f"--- the journal of mep@{where.name}, since {error.text}"), err=True)
        return _JournalTail(Journal(where), wanted)


def _chunk(child: UnprivilegedChild, tail: _Tail | _JournalTail, mark: str, *, follow: bool) -> bytes:
    """Return more of the person's log; empty at its end. While it says nothing, show what the endpoint's log says.

    Raises CliFailed if it says nothing for QUIET_S, unless it is followed.
    """
    until = time.monotonic() + QUIET_S
    while True:
        try:
            return child.receive(_CHUNK, LOOK_AGAIN_S)
        except CliFailed:
            if not follow:
                if time.monotonic() >= until:
                    raise CliFailed(f"the person's log was not read within {QUIET_S:g} s", Exit.TIMEOUT) from None
                continue
            _show(tail.more(), mark)


def _about(subject: str | None, uep_id: str) -> Callable[[str], bool]:
    if subject is None:
        return lambda _line: True
    words = [subject, *([uep_id] if uep_id else [])]
    any_word = "|".join(map(re.escape, words))
    found = re.compile(rf"[=\"](?:{any_word})(?:[\"\s]|$)")
    return lambda line: found.search(line) is not None


def _own_log(where: EndpointPaths, subject: str) -> dict[str, Any] | None:
    """Return the running user endpoint that `subject` means, or the newest that the account has left; None for none."""
    client = AdminClient.connect(where)
    running: list[dict[str, Any]] = describe_all(where, client)["user_endpoints"]
    found = [one for one in running if subject in {one["uep_id"], one["local_user"]} and one.get("log_path")]
    if found:
        return max(found, key=lambda one: one.get("since") or 0)
    if _UUID.fullmatch(subject):
        return None
    try:
        home = pwd.getpwnam(subject).pw_dir
    except KeyError:
        raise CliFailed(f"{subject} is neither a user endpoint nor an account here", Exit.USAGE) from None
    return {"uep_id": "", "local_user": subject, "log_path": f"{home}/.mep/uep"}


def _open_log(where: EndpointPaths) -> int:
    """Return a descriptor of the endpoint's log. Raises CliFailed."""
    client = AdminClient.connect(where)
    if client is not None:
        with client:
            done, _, descriptors = client.ask(m.AdminLog())
        if descriptors:
            return descriptors[0]
        raise _NoFile(done.problem)
    if is_foreign(where):
        raise CliFailed(f"endpoint {where.name} is not running: only its owner can read its log", Exit.NOT_RUNNING)
    from mep.config.resolver import read_config
    from mep.config.template_bundle import find_file

    path = find_file(where.state_dir, read_config(where).options.log_path, "endpoint.log")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise _NoFile(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise CliFailed(f"{path}: {error.strerror}") from None


class _NoFile(CliFailed):
    """The endpoint's log is in no file."""


class _JournalTail:
    """The end of a unit's log in systemd's journal."""

    def __init__(self, journal: Journal, wanted: Callable[[str], bool]) -> None:
        self._journal, self._wanted = journal, wanted

    def last(self, lines: int) -> list[str]:
        """Return the last lines. Raises CliFailed."""
        try:
            found = self._chosen(self._journal.read(at_most=_JOURNAL_LINES, seconds=QUIET_S))
        except JournalUnreadable as error:
            raise CliFailed(str(error)) from None
        return found[-lines:] if lines else []

    def more(self) -> list[str]:
        """Return the whole lines that have come since."""
        return self._chosen(self._journal.more())

    def _chosen(self, lines: Iterable[bytes]) -> list[str]:
        return [text for line in lines if self._wanted(text := _text(line))]


class _Tail:
    """The end of a log that may be rotated."""

    def __init__(self, reopen: Callable[[], int], wanted: Callable[[str], bool]) -> None:
        self._reopen, self._wanted = reopen, wanted
        self._descriptor, self._rest = reopen(), b""
        self._looked_at = time.monotonic()

    def last(self, lines: int) -> list[str]:
        """Return the last lines, and stand at the end."""
        size = os.fstat(self._descriptor).st_size
        os.lseek(self._descriptor, max(0, size - _TAIL_BYTES), os.SEEK_SET)
        found = self.more()
        return found[-lines:] if lines else []

    def more(self) -> list[str]:
        """Return the whole lines that have come since."""
        data = b""
        while chunk := os.read(self._descriptor, _CHUNK):
            data += chunk
        if not data and time.monotonic() - self._looked_at > 20 * LOOK_AGAIN_S:
            self._follow_rotation()
        *whole, self._rest = (self._rest + data).split(b"\n")
        texts = [_text(line) for line in whole]
        return [text for text in texts if self._wanted(text)]

    def _follow_rotation(self) -> None:
        self._looked_at = time.monotonic()
        now = self._reopen()
        if os.path.sameopenfile(now, self._descriptor):
            os.close(now)
        else:
            os.close(self._descriptor)
            self._descriptor = now


# --- the child, as the person -------------------------------------------------------------------------------


def _send_log(path: str, lines: int, follow: bool, parent: socket.socket) -> None:
    """Send the last lines of the log at `path`, or of the newest below that directory, and then all that follows."""
    try:
        descriptor = os.open(_newest(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "is no regular file")
    except OSError as error:
        parent.send(f"{printable(path)}: {error.strerror}\n".encode())
        return
    size = os.fstat(descriptor).st_size
    os.lseek(descriptor, max(0, size - _TAIL_BYTES), os.SEEK_SET)
    data = b""
    # No more than it had: a person who writes faster than this reads would have it read for ever.
    while len(data) < min(size, _TAIL_BYTES) and (chunk := os.read(descriptor, _CHUNK)):
        data += chunk
    _send(parent, b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b"")
    gone = select.poll()
    gone.register(parent.fileno(), select.POLLIN)
    while follow and not gone.poll(LOOK_AGAIN_S * 1000):
        while chunk := os.read(descriptor, _CHUNK):
            _send(parent, chunk)


def _newest(path: str) -> str:
    found = [(one.stat().st_mtime, str(one)) for one in Path(path).glob("*/endpoint.log")]
    return max(found)[1] if found else path


def _send(parent: socket.socket, data: bytes) -> None:
    for start in range(0, len(data), _CHUNK):
        parent.send(data[start : start + _CHUNK])
