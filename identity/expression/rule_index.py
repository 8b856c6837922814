"""Finds, among many patterns, the few that may match a string, by the fixed text they begin or end with.

A file with a line for each person has thousands of rules; trying a regular expression for each would cost
milliseconds a mapping. Dictionaries give the patterns worth trying instead: by the whole string if the
pattern is exact, by its required ending, or by its required beginning. For the rest, a search for a required text
comes before the regular expression. The index only ever leaves out patterns that cannot
match.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from identity.expression.pattern import Pattern, fold

_Places = defaultdict[str, list[int]]


class _Half:
    """The patterns of one case sensitivity."""

    def __init__(self) -> None:
        self.exact: _Places = defaultdict(list)
        self.suffixes: defaultdict[int, _Places] = defaultdict(lambda: defaultdict(list))
        self.prefixes: defaultdict[int, _Places] = defaultdict(lambda: defaultdict(list))
        self.others: list[tuple[int, str]] = []

    def add(self, number: int, pattern: Pattern) -> None:
        if pattern.exact:
            self.exact[pattern.prefix].append(number)
        elif pattern.suffix:
            self.suffixes[len(pattern.suffix)][pattern.suffix].append(number)
        elif pattern.prefix:
            self.prefixes[len(pattern.prefix)][pattern.prefix].append(number)
        else:
            self.others.append((number, pattern.within))

    def find(self, string: str) -> Iterable[int]:
        yield from self.exact.get(string, ())
        for length, numbers in self.suffixes.items():
            yield from numbers.get(string[-length:], ())
        for length, numbers in self.prefixes.items():
            yield from numbers.get(string[:length], ())
        yield from (number for number, within in self.others if within in string)


class RuleIndex:
    """Patterns by their numbers in a list of rules. Fill it first, then share it between threads."""

    def __init__(self) -> None:
        self._as_written = _Half()
        self._folded = _Half()
        self._has_folded = False

    def add(self, number: int, pattern: Pattern) -> None:
        """Enter the pattern of rule `number`."""
        half = self._folded if pattern.ignore_case else self._as_written
        self._has_folded |= pattern.ignore_case
        half.add(number, pattern)

    def candidates(self, string: str) -> set[int]:
        """Return the numbers of all patterns that match `string`, and perhaps of some that do not."""
        found = set(self._as_written.find(string))
        if self._has_folded:
            found.update(self._folded.find(fold(string)))
        return found
