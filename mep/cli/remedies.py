"""Ends each finding with the command that mends it: one that the text has already, or an editor at the line."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

_HAS_ONE = re.compile(r"\brun[: ]|\bchmod |\bchown ")
_EXAMPLES = Path("/usr/share/doc/mep-endpoint/examples")
"""The files of a new endpoint, as the package brings them."""
_PLACE = re.compile(r"(/[^:\n]+?)(?::(\d+))?: ")


def with_command(text: str) -> str:
    """Return a finding that begins with FILE or FILE:LINE with an editor's command, unless it has a command.

    No editor helps an account that may not read the file.
    """
    place = _PLACE.match(text)
    if place is not None and text.endswith(os.strerror(errno.ENOENT)) and (_EXAMPLES / Path(place[1]).name).is_file():
        return f"{text}; restore it, or run: cp {_EXAMPLES / Path(place[1]).name} {shlex.quote(place[1])}"
    if place is None or _HAS_ONE.search(text) or not Path(place[1]).is_file():
        return text
    if not os.access(place[1], os.R_OK):
        return f"{text}; run this as root, or as the account that owns the file"
    line = f"+{place[2]} " if place[2] else ""
    return f"{text}; run: vi {line}{shlex.quote(place[1])}"


def at_keys(config: Path, lines: Mapping[str, int], notes: Iterable[str]) -> list[str]:
    """Return notes that begin with a key of config.yaml with the file, and the line in which it has that key."""
    found = []
    for note in notes:
        line = lines.get(note.partition(":")[0])
        found.append(f"{config}:{line}: {note}" if line else note)
    return found


def placed(directory: Path, note: str) -> str:
    """Return a note that begins with a file of `directory` with the whole path."""
    name = re.match(r"[\w.][\w./-]*", note)
    return f"{directory}/{note}" if name and (directory / name[0]).is_file() else note
