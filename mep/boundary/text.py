"""Makes foreign text harmless for a terminal and for a log line. Standard library only.

`mep_wire/text.py` is the same code for all other processes; root imports nothing of that package. A test compares both.
"""

from __future__ import annotations

import sys
from typing import TextIO, cast

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@+,%*")


def printable(text: str) -> str:
    r"""Return `text` on one line, with each character that has an effect but no glyph as `\x1b` or `\u202e`.

    Those are C0 and C1 controls, DEL, controls of direction, zero-width characters, separators of lines, every space
    but U+0020, lone surrogates, and code points that Unicode leaves to private use or to later versions.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, but with its newlines and tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def field_text(value: object) -> str:
    """Return `value` as it stands after `key=` in a line of a log: bare where it is plain, else quoted."""
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


class EscapingStream:
    """A text stream that passes its input through `printable_lines`. All else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`."""
        self._stream.write(printable_lines(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of `lines`."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def escape_output() -> None:
    """Escape all that this process prints from now on. `sys.__stdout__` stays as it is, for our own colours."""
    sys.stdout = cast("TextIO", EscapingStream(sys.stdout))
    sys.stderr = cast("TextIO", EscapingStream(sys.stderr))
