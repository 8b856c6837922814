"""A program on a real pseudo-terminal, and the screen that a person would see.

It knows the few control sequences that `mep top` writes, and fails at any other: a sequence that slipped out of foreign
text would be one.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_PARTS = re.compile(rb"\x1b\[(\??\d*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")
_HALF = re.compile(rb"\x1b(?:\[\??\d*)?\Z")


class Terminal:
    """A terminal of `columns` and `rows`. `alternate`: a full-screen program has it."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows, self.alternate, self.cursor_shown = columns, rows, False, True
        self._lines = [""] * rows
        self._row = self._column = 0
        self._lock = threading.Lock()
        self.master, self.slave = os.openpty()
        termios.tcsetwinsize(self.slave, (rows, columns))
        self.problem = ""

    @property
    def screen(self) -> str:
        """The lines without spaces at their ends."""
        assert not self.problem, self.problem
        with self._lock:
            return "\n".join(line.rstrip() for line in self._lines).rstrip()

    @property
    def words(self) -> str:
        """The screen's words with single spaces, however they are wrapped."""
        return " ".join(self.screen.split())

    def press(self, key: str) -> None:
        """Type."""
        os.write(self.master, key.encode())

    def _read(self) -> None:
        data = b""
        while True:
            try:
                more = os.read(self.master, 65536)
            except OSError:
                return  # nobody has the other end any more
            data = self._feed(data + more)

    def _feed(self, data: bytes) -> bytes:
        """Draw; return the beginning of a part that is not whole yet."""
        half = _HALF.search(data)
        cut = half.start() if half else len(data)
        with contextlib.suppress(UnicodeDecodeError):
            data[:cut].decode()
            with self._lock:
                for found in _PARTS.finditer(data[:cut]):
                    self._part(found)
            return data[cut:]
        return data

    def _part(self, found: re.Match[bytes]) -> None:
        text = found[0]
        if text == b"\r":
            self._column = 0
        elif text == b"\n":
            self._row = min(self._row + 1, self.rows - 1)
        elif text[:1] != b"\x1b":
            self._write(text.decode())
        else:
            self._sequence(found[1].decode(), found[2].decode())

    def _write(self, text: str) -> None:
        before = self._lines[self._row][: self._column].ljust(self._column)
        after = self._lines[self._row][self._column + len(text) :]
        self._lines[self._row] = (before + text + after)[: self.columns]
        self._column = min(self._column + len(text), self.columns)
        if len(before + text) > self.columns:
            self.problem = f"a line of {len(before + text)} characters on a terminal of {self.columns}: {text}"

    def _sequence(self, number: str, kind: str) -> None:
        match number, kind:
            case ("?1049", "h" | "l"):
                self.alternate = kind == "h"
            case ("?25", "h" | "l"):
                self.cursor_shown = kind == "h"
            case ("", "H"):
                self._row = self._column = 0
            case ("", "K"):
                self._lines[self._row] = self._lines[self._row][: self._column]
            case ("", "J"):
                self._lines[self._row] = self._lines[self._row][: self._column]
                self._lines[self._row + 1 :] = [""] * (self.rows - self._row - 1)
            case _:
                self.problem = f"a control sequence that is not expected: {number}{kind}"


@contextlib.contextmanager
def on_terminal(
    argv: Sequence[str], columns: int, rows: int, environment: Mapping[str, str]
) -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    """Run a program on a terminal of this size for the length of a `with` block."""
    terminal = Terminal(columns, rows)
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.slave)
    process = subprocess.Popen(argv, env=dict(environment), cwd="/", start_new_session=True, **streams)
    os.close(terminal.slave)
    reader = threading.Thread(target=terminal._read, daemon=True)
    reader.start()
    try:
        yield terminal, process
    finally:
        process.kill()
        process.wait(timeout=30)
        reader.join(timeout=30)
        os.close(terminal.master)
