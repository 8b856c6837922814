"""Fills the braces of a command line with values, each quoted for its position in bash's syntax.

A value becomes one word, or a part of the quoted text around it, and nothing in it is special to bash. Where this
reader of bash's syntax can't tell the position for certain, a value with special characters is refused. Runs
in workers.
"""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Mapping
from typing import Any

_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_SPECIAL_IN_DOUBLE = re.compile(r'([\\"$`])')
RAW = "raw"


def fill(command: str, values: Mapping[str, Any], *, quote: bool) -> str:
    """Return `command` with `{name}` replaced by its value, quoted unless it is `{name|raw}` or `quote` is false.

    Raises KeyError, IndexError and ValueError for braces that cannot be filled.
    """
    return _Filler(values, quote=quote).fill(command)


class _Filler(string.Formatter):
    def __init__(self, values: Mapping[str, Any], *, quote: bool) -> None:
        self._values, self._quote = values, quote

    def fill(self, command: str) -> str:
        """Return the command with its values."""
        done, unread, reader = [], list[str](), _Reader()
        for literal, name, spec, conversion in self.parse(command):
            unread.append(literal)
            if name is None:
                continue
            text, quote = self._value(name, spec or "", conversion)
            if quote:  # only then does it matter where this is
                done.append("".join(unread))
                unread = []
                reader.read(done[-1])
                text = reader.quoted(text, name)
            unread.append(text)
        return "".join([*done, *unread])

    def _value(self, name: str, spec: str, conversion: str | None) -> tuple[str, bool]:
        """Return a value as text, and whether it is to be quoted."""
        name, _, way = name.partition("|")
        if not name or name.isdigit():
            raise IndexError("values have names")
        value, _ = self.get_field(name, (), self._values)
        if way not in ("", RAW):
            raise ValueError(f"{{{name}|{way}}}: the one way besides {{{name}}} is {{{name}|{RAW}}}")
        text: str = self.format_field(self.convert_field(value, conversion), self.vformat(spec, (), self._values))
        return text, self._quote and way != RAW and not _PLAIN.fullmatch(text)


class _Reader:
    """Reads bash's syntax as far as to know whether quotes are open."""

    def __init__(self) -> None:
        self._quote = ""
        """The quote that is open: ' or " or $' or #, which is a comment."""
        self._word = False
        """Whether the last character belongs to a word, so that # begins no comment."""
        self._unsure = self._joined = False
        self._open_braces = 0
        """Of ${NAME:-...} within double quotes."""

    def read(self, text: str) -> None:
        """Go on with the next part of the command."""
        at = 0
        while at < len(text):
            at += self._step(text, at)
        # A backslash or a dollar would change what a quote after it means.
        self._joined = at > len(text) or (text.endswith("$") and self._quote in ("", '"'))

    def _step(self, text: str, at: int) -> int:
        """Take in the character at this position, and those that belong to it; return how many."""
        char, two = text[at], text[at : at + 2]
        if self._quote == "":
            return self._unquoted(char, two, text[at : at + 3])
        if char == "\\" and self._quote in ('"', "$'"):
            return 2
        if self._quote == '"':
            self._read_expansions(char, two)
        if char == {"$'": "'", "#": "\n"}.get(self._quote, self._quote):
            self._quote, self._word = "", self._quote != "#"
        return 1

    def _read_expansions(self, char: str, two: str) -> None:
        """Take in a character within double quotes, where expansions have rules of their own."""
        if two == "$(" or char == "`":
            self._unsure = True  # a command within quotes has quotes of its own
        elif two == "${":
            self._open_braces += 1
        elif char == "}":
            self._open_braces = max(0, self._open_braces - 1)
        elif char == '"' and self._open_braces:
            self._unsure = True  # in bash this does not end the quotes

    def _unquoted(self, char: str, two: str, three: str) -> int:
        if char == "\\":
            self._word = True
            return 2
        if (two == "<<" and three != "<<<") or two == "((" or char == "`":
            self._unsure = True  # here-documents, arithmetic and backticks have rules of their own
        if three == "<<<":
            return 3
        if two in ("$'", '$"'):
            self._quote = "$'" if two == "$'" else '"'
            return 2
        if char in "'\"" or (char == "#" and not self._word):
            self._quote = char
        self._word = char not in " \t\n;|&()<>"
        return 1

    def quoted(self, text: str, name: str) -> str:
        """Return a value as it is to stand here."""
        if self._unsure or self._joined or self._open_braces or self._quote in ("$'", "#"):
            raise ValueError(
                f"the value of {{{name}}} has characters that are special to bash, and it stands after \\ or $, in a "
                f"comment or $'...', or after <<, ((, ` or a command within quotes. Write {{{name}|{RAW}}} to quote it "
                "yourself"
            )
        if self._quote == "'":
            return text.replace("'", "'\\''")
        if self._quote == '"':
            return _SPECIAL_IN_DOUBLE.sub(r"\\\1", text)
        return shlex.quote(text)
