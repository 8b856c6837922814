"""Texts of a person's that can stand in a site's configuration: which characters they may not have.

Values of user_endpoint_config end up in command lines, environments and YAML files. A value with a character that none
of these can hold is refused where it is given. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mep_wire.errors import UserConfigInvalid

_NO_YAML = re.compile("[^\\x09\\x0a\\x0d\\x20-\\x7e\\x85\\xa0-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""What YAML 1.1 counts as not printable: controls but tab and line breaks, lone surrogates, U+FFFE and U+FFFF."""
_NO_ARGUMENT = re.compile("[\\x00\\ud800-\\udfff]")


def check_characters(config: Mapping[str, Any]) -> None:
    """Raise UserConfigInvalid for the first text in `config`, key or value, that a configuration can't hold."""
    for path, problem in unusable_texts(config, _NO_YAML):
        raise UserConfigInvalid(key=path, reason=problem)


def unusable_texts(value: Any, unusable: re.Pattern[str] = _NO_ARGUMENT) -> Iterator[tuple[str, str]]:
    """Yield the path (keys and indexes, with dots) of each text that has an `unusable` character, and the reason.

    By default, those that no argument and no variable of a process can hold.
    """
    waiting: list[tuple[str, Any]] = [("", value)]
    seen: set[int] = set()  # a value may hold itself
    while waiting:
        path, one = waiting.pop()
        if isinstance(one, Mapping | list | tuple):
            if id(one) in seen:
                continue
            seen.add(id(one))
        if isinstance(one, str) and (found := unusable.search(one)):
            where = f"at character {found.start() + 1}"
            yield path, f"has {name_of(found[0])} {where}, which no configuration can hold"
        elif isinstance(one, Mapping):
            waiting += [(_joined(path, escaped(key)), part) for key, part in reversed(list(one.items()))]
            waiting += [(_joined(path, escaped(key)), key) for key in one if unusable.search(str(key))]
        elif isinstance(one, list | tuple):
            waiting += [(_joined(path, str(index)), part) for index, part in reversed(list(enumerate(one)))]


def name_of(character: str) -> str:
    """Return a character's name for a person: NUL, or its code point."""
    if character == "\0":
        return "a NUL character"
    kind = "the lone surrogate" if "\ud800" <= character <= "\udfff" else "the character"
    return f"{kind} U+{ord(character):04X}"


def escaped(key: object) -> str:
    """Return a key as it can stand in a message."""
    text = str(key)[:80]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
