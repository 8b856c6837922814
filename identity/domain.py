"""domain_identity_mapping#1.0.0: name@example.edu is the local user name. For a site with one domain, or a few."""

from __future__ import annotations

import json
from collections.abc import Sequence

from identity.base import Identity, LookupOptions, MappingAnswer, Trace, label
from identity.document import MappingDocument

DATA_TYPE = "domain_identity_mapping#1.0.0"


class DomainMapper:
    """`domains` in lower case; `provider` is the id that `identity_provider` must have, None for any."""

    def __init__(self, domains: Sequence[str], provider: str | None) -> None:
        self._domains = frozenset(domains)
        self._provider = provider
        self.description = f"domain mapping of {', '.join(domains)}"

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        """Return the part before the @ of every username in one of the domains."""
        found = []
        for identity in identities:
            name, reason = self._name(identity)
            if trace:
                trace(f"{label(identity)}: {reason}")
            if name is not None:
                found.append(MappingAnswer(identity, name, "domain"))
        return found

    def close(self) -> None:
        """Nothing to let go of."""

    def _name(self, identity: Identity) -> tuple[str | None, str]:
        name, at, domain = identity.get("username", "").rpartition("@")
        if not at or domain.lower() not in self._domains or not domain.isascii():
            return None, f"not in {', '.join(sorted(self._domains))}"
        provider = identity.get("identity_provider")
        if self._provider is not None and (provider is None or provider.lower() != self._provider):
            return None, f"comes from identity provider {provider}, not from {self._provider}"
        return name, f"in domain {domain}"


def file_text(domains: Sequence[str]) -> str:
    """Return a mapping file for people of `domains`. Raises DocumentInvalid for an invalid domain."""
    document = {"DATA_TYPE": DATA_TYPE, "domain": domains[0] if len(domains) == 1 else list(domains)}
    from_document(MappingDocument(document))
    return json.dumps([document], indent=2) + "\n"


def from_document(document: MappingDocument) -> DomainMapper:
    """Return the mapper for `document`. Raises DocumentInvalid."""
    domains = [domain.lower() for domain in document.take_texts("domain")]
    for domain in domains:
        if not domain or "@" in domain or not domain.isascii() or any(c.isspace() for c in domain):
            raise document.refuse("domain", f"{domain!r} is not a domain, such as example.edu")
    provider = document.take_text("identity_provider").lower() if document.has("identity_provider") else None
    if provider is not None and not provider.strip():
        raise document.refuse("identity_provider", "is empty: leave it out where any provider will do")
    return DomainMapper(domains, provider)
