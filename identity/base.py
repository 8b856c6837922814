"""The contract of a mapper, the object made from one document of the mapping file.

A mapper is given the identities that count (identity.chain filters them) and returns the local user for each.
It is called from several threads at once. One file for each kind: expression, domain, callout, ldap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Identity = Mapping[str, str]
Trace = Callable[[str], None]
"""Is told, in one line, why something matched or did not; for `mep map`."""


@dataclass(frozen=True, slots=True)
class MappingAnswer:
    """`identity` means local user `name` (not checked yet), by the rule that `rule` describes."""

    identity: Identity
    name: str
    rule: str
    literal: bool = False
    """Whether the mapping file spells out the name, so that everyone the rule matches gets the same one."""


@dataclass(frozen=True, slots=True)
class LookupOptions:
    """How to look a person up."""

    bypass_cache: bool = False
    """Ignore cached answers."""
    background: bool = False
    """A background re-check of a running user endpoint."""
    person: str = ""
    """Tells people apart, where they are counted."""
    end_user: str = ""
    """The person of a gateway that its community account acts for, as the gateway says. Empty for all mappers with a
    document that does not ask for it."""


class IdentityMapper(Protocol):
    """One document of the mapping file."""

    @property
    def description(self) -> str:
        """Type and particulars in one line, for logs. No secrets."""

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        """Return the results of the first rule that applies to any of `identities`, one for each of them in order.

        Raises MapperUnavailable if the mapper can't tell, AmbiguousMapping if its result is not unique
        and NameRefused if a rule that applies gives no name.
        """

    def close(self) -> None:
        """Let go of connections. Calls that are under way still end in good order."""


def label(identity: Identity) -> str:
    """Return how an identity is called in logs."""
    return identity.get("username") or identity.get("id") or "an identity with neither username nor id"
