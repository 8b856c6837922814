"""`mep top`: asks the monitor and looks at the processes again and again, and draws what it finds.

Nothing here needs a library: the screen is plain text and three control sequences. Called by status_commands.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mep.cli.endpoint_state import add_process_figures, keepers_of
from mep.cli.endpoint_view import fitted, text_of
from mep.cli.endpoint_watch import EndpointWatch
from mep.cli.process_figures import ProcessFigures, Sampler

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"
_ALTERNATE, _NORMAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


class Screen:
    """The looks at one endpoint."""

    def __init__(self, where: EndpointPaths, *, wide: bool, as_json: bool) -> None:
        self._watch, self._wide, self._as_json = EndpointWatch(where), wide, as_json
        self._before: dict[int, tuple[float, ProcessFigures]] = {}

    def run(self, interval_s: float, count: int | None) -> None:
        """Look every `interval_s` seconds, `count` times or until `q` or Ctrl-C.

        Raises CliFailed and ConfigRefused at the first look.
        """
        live = not self._as_json and sys.stdout.isatty()
        with Sampler() as sampler, _screen(live) as keys, contextlib.suppress(KeyboardInterrupt):
            looks = 0
            while True:
                self._draw(self._look(sampler), live=live)
                looks += 1
                if looks == count or _quit(keys, interval_s):
                    break
        self._watch.close()

    def _look(self, sampler: Sampler) -> dict[str, Any]:
        value = self._watch.look()
        found, now = sampler.sample(keepers_of(value)), time.monotonic()
        add_process_figures(value, found)
        for one in value["user_endpoints"]:
            keeper = one.get("keeper_pid", 0)
            if keeper in self._before and keeper in found:
                at, former = self._before[keeper]
                used = max(0.0, found[keeper].cpu_s - former.cpu_s)
                one["cpu_percent"] = round(100 * used / max(0.001, now - at), 1)
        self._before = {keeper: (now, one) for keeper, one in found.items()}
        value["user_endpoints"].sort(key=lambda one: (-one.get("cpu_percent", 0.0), one["uep_id"]))
        return value

    def _draw(self, value: dict[str, Any], *, live: bool) -> None:
        if self._as_json:
            click.echo(json.dumps(value))
            return
        columns, rows = shutil.get_terminal_size()
        lines = text_of(value, None if self._wide or not live else columns, cut=live)
        if not live:
            click.echo("\n".join([*lines, ""]))
            return
        if len(lines) > rows - 1:
            lines = [*lines[: rows - 2], f"… {len(lines) - rows + 2} lines more: make the window larger"]
        shown = [fitted(line, None if self._wide else columns) + _CLEAR_LINE for line in lines]
        out = sys.__stdout__  # its own sequences must not be escaped; the lines are
        if out is not None:
            out.write(_HOME + "\r\n".join(shown) + _CLEAR_BELOW)
            out.flush()


@contextlib.contextmanager
def _screen(live: bool) -> Iterator[int]:
    """Yield the descriptor of the keyboard, -1 if there is none; put the terminal back at the end."""
    out = sys.__stdout__
    if not live or out is None:
        yield -1
        return
    keys = sys.stdin.fileno() if sys.stdin.isatty() else -1
    former = termios.tcgetattr(keys) if keys >= 0 else None
    out.write(_ALTERNATE)
    out.flush()
    try:
        if keys >= 0:
            tty.setcbreak(keys)
        yield keys
    finally:
        if former is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, former)
        out.write(_NORMAL)
        out.flush()


def _quit(keys: int, seconds: float) -> bool:
    """Wait for the next look; return whether `q` was pressed."""
    if keys < 0:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([keys], [], [], left)[0] and os.read(keys, 64)[:1] in (b"q", b"Q", b""):
            return True
    return False
