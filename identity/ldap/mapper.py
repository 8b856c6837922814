"""ldap_identity_mapping#1.0.0: looks a person's identity up in a directory.

Every identity that counts is looked up by itself: the filter is filled with its fields, exactly one entry must be
found, and its attribute is the user name. Two entries, or two names in one, are refused as ambiguous; a directory
that does not answer is a failed mapper. An identity is not looked up if a field that the filter needs is missing,
empty or unfit (identity.ldap.filter_values). With `required_group`, an entry outside the group counts as not found.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from identity.answer_cache import AnswerCache
from identity.base import Identity, LookupOptions, MappingAnswer, Trace, label
from identity.errors import AmbiguousMapping, NameRefused, SourceUnavailable
from identity.ldap import filter_values
from identity.ldap.directory import NO_ATTRIBUTES, Directory, DirectoryFailed, Entry, Query, Visit
from identity.template import Template
from identity.usernames import problem


@dataclass(frozen=True, slots=True)
class Lookup:
    """The query: `required_group` is a DN or empty, `group_attribute` the attribute that lists its members."""

    base: str
    scope: str
    filter: Template
    attribute: str
    required_group: str = ""
    group_attribute: str = "member"


class LdapMapper:
    """One directory and one search. Answers are remembered by the filled filter."""

    def __init__(self, directory: Directory, lookup: Lookup, cache: AnswerCache[str], description: str) -> None:
        self._directory = directory
        self._lookup = lookup
        self._cache = cache
        self.description = description

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        """Return the user name of each identity that the directory knows."""
        found = []
        with contextlib.ExitStack() as stack:
            # The limit counts only a person whose answers are not cached, and then all their queries as one.
            visit = functools.cache(lambda: stack.enter_context(self._directory.visit(how)))
            for identity in identities:
                name, reason = self._name(identity, how.bypass_cache, visit)
                if trace:
                    trace(f"{label(identity)}: {reason}")
                if name is not None:
                    found.append(MappingAnswer(identity, name, "directory"))
        return found

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._directory.close()

    def _name(self, identity: Identity, bypass_cache: bool, visit: Callable[[], Visit]) -> tuple[str | None, str]:
        """Return the user name or None, and how that came about."""
        for name in self._lookup.filter.fields:
            value = identity.get(name)
            reason = "it has no such field" if value is None else filter_values.unfit(value)
            if reason:
                return None, f"not looked up for its {name}: {reason}"
        text = self._lookup.filter.fill(identity, escape=filter_values.escape)
        if not bypass_cache:
            known, answer = self._cache.get(text)
            if known:
                return answer, f"{text}: remembered: {answer or 'nobody'}"
        began = self._cache.clock()
        try:
            answer, reason = self._ask(visit(), text)
        except DirectoryFailed as error:
            raise SourceUnavailable(str(error)) from None
        except (AmbiguousMapping, NameRefused):
            self._cache.drop(text, began)  # the entry it gave before no longer matches
            raise
        self._cache.put(text, answer, began)
        return answer, f"{text}: {reason}"

    def _ask(self, visit: Visit, text: str) -> tuple[str | None, str]:
        lookup = self._lookup
        entries = visit.search(Query(lookup.base, lookup.scope, text, lookup.attribute))
        if not entries:
            return None, "found nothing"
        if len(entries) > 1:
            raise AmbiguousMapping(f"{text} finds several entries: {' and '.join(entry.dn for entry in entries)}")
        name = self._name_in(entries[0])
        if lookup.required_group and not self._in_group(visit, entries[0], name):
            return None, f"found {entries[0].dn}, which is not in {lookup.required_group}"
        return name, f"found {entries[0].dn}: {name}"

    def _name_in(self, entry: Entry) -> str:
        attribute = self._lookup.attribute
        names = {value.decode(errors="backslashreplace") for value in entry.values}
        if not names:
            raise NameRefused(f"{entry.dn} has no {attribute}")
        if len(names) > 1:
            raise AmbiguousMapping(f"{entry.dn} has several values of {attribute}: {', '.join(sorted(names))[:200]}")
        name = names.pop()
        if (reason := problem(name)) is not None:
            raise NameRefused(f"{entry.dn}: {reason}")
        return name

    def _in_group(self, visit: Visit, entry: Entry, name: str) -> bool:
        lookup = self._lookup
        member = name if lookup.group_attribute == "memberUid" else entry.dn
        text = f"({lookup.group_attribute}={filter_values.escape(member)})"
        return bool(visit.search(Query(lookup.required_group, "base", text, NO_ATTRIBUTES)))
