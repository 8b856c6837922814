"""Reads an endpoint's log where that is systemd's journal, as far as this account may read it.

Called by `mep logs` and `mep why`. The lines are foreign text: systemd adds its own, and PAM modules may write there.
"""

from __future__ import annotations

import os
import select
import subprocess
from functools import partial
from typing import TYPE_CHECKING

from mep.boundary import untraceable
from mep.cli.admin_client import is_foreign

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

JOURNALCTL = "/usr/bin/journalctl"
_CURSOR = b"-- cursor: "
_CHUNK = 32 * 1024


class JournalUnreadable(Exception):
    """The text says why the journal was not read."""


class Journal:
    """The journal of an endpoint's unit: of the system's service manager, or of the owner's own."""

    def __init__(self, where: EndpointPaths) -> None:
        self.unit = f"mep@{where.name}"
        option = "--unit" if where.privileged or is_foreign(where) else "--user-unit"
        self._argv = [JOURNALCTL, option, self.unit, "--output", "cat", "--no-pager", "--quiet"]
        self._place: list[str] = ["--lines", "0"]
        self._follower: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def read(self, *, at_most: int | None, seconds: float) -> list[bytes]:
        """Return the last `at_most` lines, or all; `more` goes on behind them. Raises JournalUnreadable."""
        argv = [*self._argv, "--show-cursor", *(["--lines", str(at_most)] if at_most is not None else [])]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise JournalUnreadable(f"{JOURNALCTL} gave no answer within {seconds:g} s") from None
        except OSError as error:
            raise JournalUnreadable(f"{JOURNALCTL}: {error.strerror}") from None
        lines = done.stdout.splitlines()
        if lines and lines[-1].startswith(_CURSOR):
            self._place = ["--after-cursor", lines.pop().removeprefix(_CURSOR).decode("utf-8", "replace")]
        if not lines and os.geteuid() != 0:
            raise JournalUnreadable(
                f"the journal shows this account no line of {self.unit}: members of the group systemd-journal may read "
                f"it (run: usermod --append --groups systemd-journal USER), or set log_path in config.yaml, then "
                "`mep reload`: the log is that file then, which `mep logs` shows to members of admin_group"
            )
        if not lines and done.stderr:
            raise JournalUnreadable(f"{JOURNALCTL}: {done.stderr.decode('utf-8', 'replace').strip()}")
        return lines

    def more(self) -> list[bytes]:
        """Return the whole lines that have come since."""
        if self._follower is None:
            self._follower = subprocess.Popen(
                [*self._argv, *self._place, "--follow", "--no-tail"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                preexec_fn=partial(untraceable.end_with, os.getpid()),
            )  # fmt: skip
        out = self._follower.stdout
        assert out is not None, "it is a pipe"
        while select.select([out], [], [], 0)[0] and (chunk := os.read(out.fileno(), _CHUNK)):
            self._rest += chunk
        *whole, self._rest = self._rest.split(b"\n")
        return whole
