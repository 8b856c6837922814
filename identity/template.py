"""Strings with `{field}` and `{0}` in them: `source` and `output` of expression mappings, LDAP filters.

Filled in one pass, so that an identity's value that itself contains `{email}` stays unchanged. An unclosed brace is
text. So is a brace after an odd number of backslashes (which stay), as in Globus Connect Server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

FIELDS = frozenset({"id", "username", "name", "email", "organization", "identity_provider", "identity_type", "status"})
"""The fields that an identity may have."""
_REFERENCE = re.compile(r"(?<!\\)((?:\\\\)*)\{([^}]*)\}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]*")
_GROUP = re.compile(r"[0-9]{1,4}")


class TemplateInvalid(ValueError):
    """The template cannot be used; the text says why."""


class Missing(LookupError):
    """The identity lacks the field that the template needs."""


class Template:
    """A parsed template. Immutable, so threads may share it.

    `groups` is how many match groups `{0}`, `{1}`.. may refer to. Raises TemplateInvalid.
    """

    def __init__(self, text: str, groups: int = 0) -> None:
        self.text = text
        self._parts: list[str | int] = []
        """Literal text at even indexes, and at odd ones the name of a field or the number of a group."""
        position = 0
        for found in _REFERENCE.finditer(text):
            self._parts.append(text[position : found.end(1)])
            self._parts.append(_reference(found[2], groups))
            position = found.end()
        self._parts.append(text[position:])
        self.is_literal = len(self._parts) == 1
        """Whether nothing is filled in: the text is the same for every identity."""
        names = [part for part in self._parts[1::2] if isinstance(part, str)]
        self.fields = tuple(dict.fromkeys(names))
        """Names of the identity fields used, each once, in order."""
        self.doubt = ""
        """Why no identity can satisfy the template. It is usually a mistake and worth a warning."""
        if unknown := [name for name in self.fields if name not in FIELDS]:
            self.doubt = f"no identity has a field {unknown[0]!r}, so this maps nobody"

    def fill(
        self, identity: Mapping[str, str], groups: Sequence[str] = (), escape: Callable[[str], str] | None = None
    ) -> str:
        """Return the text with the identity's fields and the match's groups in place, each through `escape`.

        Raises Missing where the identity lacks a field.
        """
        filled = [str(self._parts[0])]
        for index in range(1, len(self._parts), 2):
            reference = self._parts[index]
            value = groups[reference] if isinstance(reference, int) else _field(identity, reference)
            filled.append(escape(value) if escape else value)
            filled.append(str(self._parts[index + 1]))
        return "".join(filled)


def _field(identity: Mapping[str, str], name: str) -> str:
    value = identity.get(name)
    if value is None:
        raise Missing(f"the identity has no field {name}")
    return value


def _reference(name: str, groups: int) -> str | int:
    if _GROUP.fullmatch(name):
        if int(name) >= groups:
            raise TemplateInvalid(f"{{{name}}} refers to a match group, and there are {groups} of them here")
        return int(name)
    if _FIELD.fullmatch(name) is None:
        raise TemplateInvalid(f"{{{name}}} is neither the name of an identity field nor the number of a match group")
    return name
