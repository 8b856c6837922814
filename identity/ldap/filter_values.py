"""Identity fields in LDAP filters: escaping (RFC 4515), and which values are fit to be looked up at all.

A directory compares texts after preparing them (RFC 4518): it drops invisible characters, squeezes spaces and folds
letters into others. A value that this would change could match another person's entry; it is not looked up.
Case is left to the directory's schema.
"""

from __future__ import annotations

import unicodedata

_DROPPED = frozenset(map(chr, (0x034F, 0x1806, *range(0x180B, 0x1810), *range(0xFE00, 0xFE10), 0xFFFC)))
"""Characters that directories drop by RFC 4518 though Python calls them printable: joiners, variation selectors etc."""
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@.-_ ,=+:/")


def escape(value: str) -> str:
    """Return `value` as it stands in a filter, every unusual byte as a backslash and two hexadecimal digits."""
    return "".join(char if char in _PLAIN else "".join(f"\\{byte:02x}" for byte in char.encode()) for char in value)


def unfit(value: str) -> str | None:
    """Return why `value` is not fit to be looked up, or None where it is."""
    if not value:
        return "it is empty"
    if not value.isprintable() or not _DROPPED.isdisjoint(value):
        return "it has invisible characters"
    if value != " ".join(value.split(" ")).strip() or "  " in value:
        return "it has spaces at an end or two in a row"
    lower = value.lower()
    keeps_case = len(lower) == len(value) and lower == value.casefold() == value.upper().lower()
    if unicodedata.normalize("NFKC", value) != value or not keeps_case:
        return "it has letters that a directory takes for others"
    return None
