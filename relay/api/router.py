"""The route table: every method and path, its body, its answer, its errors and its handler, declared once.

`relay.api.app` serves from it and `relay.api.openapi` writes the specification from it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from mep_wire.errors import BodyInvalid, MepError, PayloadTooLarge, RelayBusy, TokenUnknown


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `path` has its variables in braces; `errors` are those beyond the common ones."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Any]]
    answer: Any
    summary: str
    body: type[Any] | None = None
    errors: tuple[type[MepError], ...] = ()
    query: tuple[str, ...] = ()
    status: int = 200
    open: bool = False
    """Whether it answers without a token."""

    @property
    def all_errors(self) -> tuple[type[MepError], ...]:
        """Every error that this operation may answer with."""
        common: tuple[type[MepError], ...] = () if self.open else (TokenUnknown,)
        return common + ((BodyInvalid, PayloadTooLarge, RelayBusy) if self.body else ()) + self.errors


@dataclass(slots=True)
class Router:
    """Finds the route of a request: fixed paths by one look-up, the others by pattern."""

    _fixed: dict[tuple[str, str], Route] = field(default_factory=dict)
    _patterns: list[tuple[str, re.Pattern[str], Route]] = field(default_factory=list)

    def add(self, route: Route) -> None:
        """Serve `route`."""
        if "{" not in route.path:
            self._fixed[route.method, route.path] = route
            return
        pattern = "/".join("([^/]+)" if part.startswith("{") else re.escape(part) for part in route.path.split("/"))
        self._patterns.append((route.method, re.compile(pattern), route))

    def find(self, method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
        """Return the route and the values of its variables."""
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            return fixed, ()
        for wanted, pattern, route in self._patterns:
            if wanted == method and (match := pattern.fullmatch(path)):
                return route, match.groups()
        return None
