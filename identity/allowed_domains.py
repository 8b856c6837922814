"""Which identities of a person count, by the domain of their user names: `allowed_domains` and `excluded_domains`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_DOMAIN = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


def domain_problem(value: str) -> str:
    """Return why a text is no domain of such a list, or an empty text."""
    if len(value) <= 253 and _DOMAIN.fullmatch(value.lower()):
        return ""
    return f"{value!r} is not a domain, such as example.edu or *.edu"


@dataclass(frozen=True, slots=True)
class AllowedDomains:
    """The two lists. An empty `allowed` is any domain; `*.edu` is each domain that ends in .edu."""

    allowed: Sequence[str] = ()
    excluded: Sequence[str] = ()

    def refusal(self, identity: Mapping[str, str]) -> str:
        """Return why an identity does not count, or an empty text."""
        domain = identity.get("username", "").rpartition("@")[2].lower()
        if any(_matches(domain, one) for one in self.excluded):
            return f"excluded_domains has its domain {domain}"
        if self.allowed and not any(_matches(domain, one) for one in self.allowed):
            return f"allowed_domains does not have its domain {domain}"
        return ""


def _matches(domain: str, listed: str) -> bool:
    listed = listed.lower()
    return domain.endswith(listed[1:]) if listed.startswith("*.") else domain == listed
