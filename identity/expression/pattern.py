r"""The reduced pattern language of expression mappings, run by google-re2 (linear time in pattern and text).

The language is that of the Globus Connect Server identity mapping guide: `.` any one character but a newline, `?`
and `*` after the item they repeat, `|`, `(` and `)`. A backslash makes one of those, itself or `"` literal.
Everything else stands for itself. The whole string must match. Syntax that the guide does not have is
refused when the file is loaded: other escapes (also back-references), lazy and repeated wildcards, wildcards with
nothing to repeat (and so Perl's `(?...)`).

With ignore_case, ASCII letters are equal to ASCII letters alone: the Kelvin sign is no `k` and the long s no `s`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import re2

MAX_PATTERN_CHARS = 65536
_ESCAPABLE = frozenset('.?*|()\\"')
_META = frozenset(".?*|()")
_MEMORY_BYTES, _MEMORY_BYTES_A_CHAR = 1024 * 1024, 128


class PatternInvalid(ValueError):
    """The pattern is not in the reduced language; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of a pattern: `literal` tells an ordinary (or escaped) character from a special one."""

    char: str
    literal: bool


_WILDCARDS = (Token("?", literal=False), Token("*", literal=False))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern. Immutable; google-re2's objects may be used by several threads at once."""

    text: str
    groups: int
    """How many match groups there are."""
    prefix: str
    """The prefix of every matching string, folded if `ignore_case`; may be empty."""
    suffix: str
    """The suffix of every matching string, likewise."""
    within: str
    """A text that every matching string contains, likewise."""
    exact: bool
    """Whether `prefix` is the whole: a string matches exactly when it equals it (folded, likewise)."""
    ignore_case: bool
    _compiled: Any = None

    def match(self, string: str) -> tuple[str, ...] | None:
        """Return the groups (an empty string for one that took no part), or None where `string` does not match."""
        if self._compiled is None:
            return () if (fold(string) if self.ignore_case else string) == self.prefix else None
        found = self._compiled.fullmatch(string)
        return None if found is None else tuple(group or "" for group in found.groups())


def fold(string: str) -> str:
    """Return `string` with every letter in the case that ignore_case compares in."""
    return string.lower() if string.isascii() else "".join(map(_fold_char, string))


def _fold_char(char: str) -> str:
    lower = char.lower()
    return lower if len(lower) == 1 and lower.isascii() == char.isascii() else char


def compile_literal(text: str, ignore_case: bool) -> Pattern:
    """Return the pattern that equals `text` and nothing else."""
    folded = fold(text) if ignore_case else text
    return Pattern(text, 0, folded, folded, folded, exact=True, ignore_case=ignore_case)


def compile_pattern(text: str, ignore_case: bool) -> Pattern:
    """Return the compiled form of `text` in the reduced language. Raises PatternInvalid."""
    if len(text) > MAX_PATTERN_CHARS:
        raise PatternInvalid(f"the pattern has {len(text)} characters, more than {MAX_PATTERN_CHARS}")
    tokens = list(_tokens(text))
    _check_grammar(text, tokens)
    if all(token.literal for token in tokens):
        literal = "".join(token.char for token in tokens)
        return compile_literal(literal, ignore_case)
    options = re2.Options()
    options.max_mem = _MEMORY_BYTES + _MEMORY_BYTES_A_CHAR * len(text)
    options.log_errors = False
    try:
        compiled = re2.compile("".join(_as_re2(token, ignore_case) for token in tokens), options)
    except (re2.error, UnicodeEncodeError) as error:
        raise PatternInvalid(f"pattern {text!r}: {_plain(error)}") from None
    fixed = [fold(piece) if ignore_case else piece for piece in _fixed_pieces(tokens)]
    groups = sum(token == Token("(", literal=False) for token in tokens)
    return Pattern(
        text, groups, fixed[0], fixed[-1], max(fixed, key=len), exact=False, ignore_case=ignore_case, _compiled=compiled
    )


def _tokens(text: str) -> Iterator[Token]:
    characters = iter(text)
    for char in characters:
        if char != "\\":
            yield Token(char, literal=char not in _META)
            continue
        escaped = next(characters, None)
        if escaped is None:
            raise PatternInvalid(f"pattern {text!r}: it ends in a lone backslash")
        if escaped not in _ESCAPABLE:
            raise PatternInvalid(f"pattern {text!r}: \\{escaped} is not an escape of this pattern language")
        yield Token(escaped, literal=True)


def _check_grammar(text: str, tokens: list[Token]) -> None:
    """Refuse wildcards that have nothing to repeat or repeat a repetition, and parentheses that do not pair."""
    depth = 0
    previous = "("
    for token in tokens:
        special = "" if token.literal else token.char
        if special in {"?", "*"}:
            if previous in {"(", "|"}:
                raise PatternInvalid(f"pattern {text!r}: a wildcard '{special}' with nothing before it to repeat")
            if previous in {"?", "*"}:
                raise PatternInvalid(f"pattern {text!r}: '{previous}{special}' (a wildcard after a wildcard)")
        depth += {"(": 1, ")": -1}.get(special, 0)
        if depth < 0:
            raise PatternInvalid(f"pattern {text!r}: a ')' with no '(' before it")
        previous = special
    if depth:
        raise PatternInvalid(f"pattern {text!r}: a '(' with no ')' after it")


def _as_re2(token: Token, ignore_case: bool) -> str:
    if not token.literal:
        return token.char
    if ignore_case:
        cases = _cases(token.char)
        if len(cases) > 1:
            return "[" + "".join(sorted(cases)) + "]"
    return _escape(token.char)


def _cases(char: str) -> set[str]:
    """Return the characters that `fold` makes equal to `char`."""
    return {case for case in (char, char.lower(), char.upper()) if len(case) == 1 and fold(case) == fold(char)}


def _escape(char: str) -> str:
    if char == "\0":
        return r"\x00"
    return re.escape(char) if char.isascii() else char


def _fixed_pieces(tokens: list[Token]) -> list[str]:
    """Return the texts that any match has in it, in order: it begins with the first of them and ends with the last.

    They are the literal parts outside parentheses that are not repeated; an empty one restricts nothing.
    """
    if _has_top_level_choice(tokens):
        return [""]
    pieces = [""]
    depth = 0
    for index, token in enumerate(tokens):
        repeated = index + 1 < len(tokens) and tokens[index + 1] in _WILDCARDS
        if token.literal and depth == 0 and not repeated:
            pieces[-1] += token.char
            continue
        if pieces[-1] or len(pieces) == 1:
            pieces.append("")
        if not token.literal:
            depth += {"(": 1, ")": -1}.get(token.char, 0)
    return pieces


def _has_top_level_choice(tokens: list[Token]) -> bool:
    depth = 0
    for token in tokens:
        if not token.literal:
            depth += {"(": 1, ")": -1}.get(token.char, 0)
            if token.char == "|" and depth == 0:
                return True
    return False


def _plain(error: Exception) -> str:
    reason = error.args[0] if error.args and isinstance(error, re2.error) else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
