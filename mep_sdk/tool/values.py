"""What people write on the command line, as values."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from uuid import UUID

from mep_wire.errors import MepError


class Misused(MepError):
    """{given!r} cannot be used: expected {expected}."""

    code = "MISUSED"


def value_of(text: str) -> Any:
    """Return a JSON value; anything else is text."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return text


def id_of(text: str) -> str:
    """Return the id of a task or a group. Raises Misused."""
    try:
        return str(UUID(text))
    except ValueError:
        raise Misused(given=text, expected="an id such as 4b116d3c-1703-4f8f-9f6f-39921e5864df") from None


def keyword_of(text: str) -> tuple[str, Any]:
    """Return the name and the value of NAME=VALUE. Raises Misused."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise Misused(given=text, expected="NAME=VALUE")
    return name, value_of(value)


def config_of(text: str | None) -> dict[str, Any] | None:
    """Return the dict of a JSON object; None for None. Raises Misused."""
    if text is None:
        return None
    found = value_of(text)
    if not isinstance(found, dict):
        raise Misused(given=text, expected="a JSON object, for example '{\"nodes\": 2}'")
    return found
