"""`mep why`: the whole story of one start or task, the cause first.

It asks the relay through the manager, reads the endpoint's own logs, and has the user endpoint's log read by a child
that has dropped to its account.
"""

from __future__ import annotations

import gzip
import json
import os
import pwd
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mep.boundary.errors import ConfigRefused
from mep.cli.common import complete_name, epilog, json_option, locate
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import emit

if TYPE_CHECKING:
    from mep.cli.story import Line, Story
    from mep.config.paths import EndpointPaths

MAX_ANSWER_BYTES = 2 * 1024 * 1024
ANSWER_S = 15.0
JOURNAL_S = 30.0
_LONGEST_ID = 64
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@click.command(
    "why",
    short_help="Tell why a start or a task waits or failed.",
    epilog=epilog("mep why 0192f0c4-0000-7000-8000-000000000001", "mep why 5d3c7a52-... site --json"),
)
@click.argument("about", metavar="ID|TASK")
@click.argument("name", metavar="[NAME]", required=False, shell_complete=complete_name)
@json_option
def why(about: str, name: str | None, as_json: bool) -> None:
    """Tell what happened to ID, the cause first.

    ID is the one that the person quotes: a correlation id, the id of a task, or that of a user endpoint. The story
    comes from the relay (through this endpoint's link), monitor, mapper, keeper and user endpoint, and from the stderr
    of failed blocks. Without NAME, every endpoint that is configured here is searched. Exits with 1 if none knows ID.
    """
    from mep.cli.story import text_of
    from mep.config.paths import here, list_names

    about = about.strip().lower()
    if not _ID.fullmatch(about):
        give = "give a correlation id, or the id of a task or a user endpoint"
        raise CliFailed(f"{about[:_LONGEST_ID]}: not an id: {give}", Exit.USAGE)
    names = [name] if name is not None else list_names(here())
    if not names:
        raise CliFailed("no endpoint is configured here", Exit.CONFIG)
    stories = [find_story(locate(one)[0], about) for one in names]
    best = max(stories, key=lambda story: len(story.lines))
    if not best.lines:
        notes = "".join(f"\n  {note}" for story in stories for note in story.notes)
        raise CliFailed(f"nothing is known of {about} at {', '.join(names)}{notes}")
    emit(best.to_json(), text_of(best, _sentence(best)), as_json=as_json)


def _sentence(story: Story) -> str:
    """Return what the person reads, from the relay's words or the catalogue."""
    from inspect import cleandoc

    from mep_wire.errors import by_code

    story.cause()
    told = [line.fields.get("public", "") for line in story.lines if line.source == "relay" and line.code == story.code]
    if story.code and told and told[-1]:
        return told[-1]
    kind = by_code().get(story.code)
    return " ".join(cleandoc(kind.__doc__ or "").split()) if kind is not None else ""


def find_story(where: EndpointPaths, about: str) -> Story:
    """Return everything that this endpoint knows of `about`. Raises ConfigRefused if there is no such endpoint."""
    from mep.cli.status_commands import require_endpoint
    from mep.cli.story import Story, of_monitor, parse_audit, parse_line, parse_relay

    require_endpoint(where)
    story = Story(about)
    relay = ask_manager(where, about)
    try:
        told = parse_relay(relay)
    except ValueError as error:
        told, relay = [], {"problem": f"the manager's answer makes no sense: {error}"}
    if problem := relay.get("problem"):
        story.notes.append(f"the relay was not asked: {problem}")
    story.uep_id, story.correlation_id = _id_of(relay, "uep_id"), _id_of(relay, "correlation_id")
    story.code, story.status = str(relay.get("code", "")), str(relay.get("status", ""))
    files = _Files(where, story)
    names = {about, story.uep_id, story.correlation_id} - {""}
    audit = [line for text in files.audit(names) if (line := parse_audit(text)) is not None]
    _identify(story, audit)
    starts = {line.fields.get("correlation_id", "") for line in audit if line.fields.get("uep_id") == story.uep_id}
    if story.uep_id:
        _add_user_endpoint(story, files, where, starts)
    names = {about, story.uep_id, story.correlation_id} - {""}
    if story.uep_id or story.correlation_id or told:
        logged = [line for text in files.log(names) if (line := parse_line(text)) is not None]
        story.add(of_monitor(sorted([*audit, *logged], key=lambda line: line.at), story.correlation_id, story.uep_id))
    story.add(told)
    if not story.lines:
        story.add(line for text in files.log({about}) if (line := parse_line(text)) is not None)
    return story


def _id_of(relay: dict[str, Any], key: str) -> str:
    """Return an id of the answer; empty for anything else. Lines are searched for it, and it may name a directory."""
    found = str(relay.get(key, ""))
    return found if _ID.fullmatch(found) and found.strip(".") else ""


def _identify(story: Story, audit: list[Line]) -> None:
    """Fill in the ids that the audit log knows: of the start with this correlation id, or the last of the process."""
    for line in audit:
        fields = line.fields
        if story.about in (fields.get("correlation_id"), fields.get("with")):
            story.correlation_id = story.about
            story.uep_id = story.uep_id or fields.get("uep_id", "")
        if story.about == fields.get("uep_id"):
            story.uep_id, story.correlation_id = story.about, fields.get("correlation_id", story.correlation_id)
        if fields.get("uep_id") == story.uep_id and fields.get("local_user"):
            story.local_user = fields["local_user"]


def _add_user_endpoint(story: Story, files: _Files, where: EndpointPaths, starts: set[str]) -> None:
    """Add the user endpoint's log and its failed blocks' stderr, and learn which start its process came from.

    `starts` are its starts by the audit log. Its own log is the person's, who may name any other there.
    """
    from mep.cli.story import USER_ENDPOINT, Line, of_user_endpoint, parse_line, process_of, processes
    from mep.cli.user_logs import directory_of, read_user_logs

    try:
        account = pwd.getpwnam(story.local_user) if where.privileged else pwd.getpwuid(os.geteuid())
    except KeyError:
        story.notes.append(f"the user endpoint's log was not read: no account {story.local_user!r}")
        return
    story.local_user = account.pw_name
    directory = directory_of(account, story.uep_id, files.user_state_dir)
    found = read_user_logs(account, directory, drop=where.privileged)
    if found.problem:
        story.notes.append(f"the user endpoint's log was not read: {found.problem}")
    lines = [line for text in found.log if (line := parse_line(text, USER_ENDPOINT)) is not None]
    part = process_of(processes(lines), story.about, story.correlation_id)
    if part and (said := part[0].fields.get("correlation_id", "")) in starts:
        story.correlation_id = said or story.correlation_id
    story.add(of_user_endpoint(part, story.about))
    for line in part:
        path = line.fields.get("stderr", "")
        if text := found.stderr.get(path, "").strip():
            story.add([Line(line.at, "ERROR", "block", f"stderr of {path}: {text[-1000:]}", {"detail": text[-1000:]})])


def ask_manager(where: EndpointPaths, about: str) -> dict[str, Any]:
    """Return the relay's answer, or a `problem`. The manager's words are not trusted."""
    from mep.boundary.runtime_files import MANAGER_SOCKET

    try:
        parent = os.open(where.runtime_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return {"problem": f"endpoint {where.name} is not running"}
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(f"/proc/self/fd/{parent}/{MANAGER_SOCKET}")
            connection.sendall(json.dumps({"why": about}).encode() + b"\n")
            data, until = b"", time.monotonic() + ANSWER_S
            while (chunk := connection.recv(65536)) and len(data) <= MAX_ANSWER_BYTES:
                data += chunk
                connection.settimeout(max(0.001, until - time.monotonic()))
        value = json.loads(data)
    except TimeoutError:
        return {"problem": "the manager does not answer"}
    except OSError as error:
        return {"problem": f"endpoint {where.name} is not running, or not yours to ask: {error.strerror}"}
    except (ValueError, RecursionError):
        return {"problem": "the manager gave no answer"}
    finally:
        os.close(parent)
    return value if isinstance(value, dict) else {}


class _Files:
    """The endpoint's own logs, also those that logrotate has put aside."""

    def __init__(self, where: EndpointPaths, story: Story) -> None:
        from mep.config.paths import here
        from mep.config.resolver import resolve

        self.user_state_dir: str | None = None
        self._audit, self._log = str(where.state_dir / "audit.log"), str(where.state_dir / "endpoint.log")
        self._notes, self._where = story.notes, where
        try:
            found = resolve(where, here(), log_to_file=True)
            self._audit, self._log = found.resolved.audit_path, found.resolved.log_path
            self.user_state_dir = found.endpoint.user_state_dir
        except (ConfigRefused, OSError) as error:
            self._notes.append(f"the configuration can't be read, so its defaults count: {error}")

    def audit(self, names: set[str]) -> Iterator[str]:
        """Yield the records that name one of these ids, the oldest first."""
        return self._search(self._audit, names)

    def log(self, names: set[str]) -> Iterator[str]:
        """Yield the lines that name one of these ids: of the log file, then of the journal. Either may be the older."""
        yield from self._search(self._log, names)
        yield from self._journal(names)

    def _journal(self, names: set[str]) -> Iterator[str]:
        from mep.cli.journal import JOURNALCTL, Journal, JournalUnreadable

        has_file = Path(self._log).exists()
        if has_file and not Path(JOURNALCTL).exists():
            return
        try:
            lines = Journal(self._where).read(at_most=None, seconds=JOURNAL_S)
        except JournalUnreadable as error:
            if not has_file:
                self._notes.append(f"no log at {self._log}, and the journal was not read: {error}")
            return
        for line in lines:
            text = line.decode("utf-8", "replace")
            if any(name in text for name in names):
                yield text

    def _search(self, path: str, names: set[str]) -> Iterator[str]:
        wanted = [name.encode() for name in names]
        for one in _rotated(path):
            opener = gzip.open if one.name.endswith(".gz") else open
            try:
                with opener(one, "rb") as file:
                    for raw in file:
                        if any(name in raw for name in wanted):
                            yield raw.decode("utf-8", "replace").rstrip("\n")
            except OSError as error:
                if one == Path(path) and not isinstance(error, FileNotFoundError):
                    self._notes.append(f"{path}: {error.strerror}")


def _rotated(path: str) -> list[Path]:
    """Return the files of a log, the oldest first."""
    base = Path(path)
    old = [
        one for one in base.parent.glob(f"{base.name}.*") if re.fullmatch(r"\.\d+(\.gz)?", one.name[len(base.name) :])
    ]
    return [*sorted(old, key=lambda one: -int(one.name[len(base.name) :].split(".")[1])), base]
