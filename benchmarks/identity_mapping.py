"""Identity mapping: expression mappings per second with many rules, and a pathological pattern's time as text grows.

    python benchmarks/identity_mapping.py

The published `globus-identity-mapping` package, if installed, is measured on the same rules. Only ours runs the
pathological pattern: the other package's time doubles with every character.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rows import Row, table

from identity.chain import Chain, ChainEntry
from identity.document import MappingDocument
from identity.expression.mapper import from_document
from identity.expression.pattern import compile_pattern

RULES = 1000
PATHOLOGICAL = "(a*)*(a|aa)*b"
LENGTHS = (40_000, 80_000, 160_000, 320_000)
"""Long enough that google-re2 uses the same engine for all of them; identity fields are much shorter."""


def personal_rules(count: int) -> list[dict[str, Any]]:
    """Return a site's file: a line for each of `count - 1` people, then one for the whole domain."""
    lines = [{"source": "{username}", "match": rf"person{i}@example\.edu", "output": f"p{i}"} for i in range(count - 1)]
    return [*lines, {"source": "{username}", "match": r"(.*)@example\.edu", "output": "{0}"}]


def pattern_rules(count: int) -> list[dict[str, Any]]:
    """Return a file of patterns with a wildcard at each end."""
    lines = [{"source": "{username}", "match": rf"(.*)-{i}(a|b)*.*", "output": "{0}"} for i in range(count - 1)]
    return [*lines, {"source": "{username}", "match": r"(.*)@example\.edu", "output": "{0}"}]


def loose_rules(count: int) -> list[dict[str, Any]]:
    """Return a file of patterns without fixed text, so that each must be run."""
    lines = [{"source": "{username}", "match": rf"(.*)(x{i}|y{i})", "output": "{0}"} for i in range(count - 1)]
    return [*lines, {"source": "{username}", "match": r"(.*)@example\.edu", "output": "{0}"}]


def _chain(rules: list[dict[str, Any]]) -> Chain:
    return Chain([ChainEntry(from_document(MappingDocument({"mappings": rules})))])


def _identity(username: str) -> dict[str, str]:
    return {"id": f"id of {username}", "username": username, "status": "used", "email": username, "name": "A Person"}


def per_second(call: Callable[[], object], at_least_s: float = 0.5) -> float:
    """Return how many calls of `call` a second holds: the median of five series."""
    rates = []
    for _ in range(5):
        began, calls = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < at_least_s / 5:
            call()
            calls += 1
        rates.append(calls / passed)
    return statistics.median(rates)


def _published(rules: list[Any]) -> Callable[[str], object] | None:
    try:
        from globus_identity_mapping.mappers.expression import ExpressionIdentityMapping
    except ImportError:
        return None
    mapper = ExpressionIdentityMapping(rules)
    return lambda username: mapper.map_identities([_identity(username)])


def pathological_ms() -> list[float]:
    """Return the milliseconds that PATHOLOGICAL takes over texts of LENGTHS."""
    pattern = compile_pattern(PATHOLOGICAL, ignore_case=False)
    found = []
    for length in LENGTHS:
        text = "a" * length + "b"
        times = []
        for _ in range(5):
            began = time.perf_counter()
            assert pattern.match(text)
            times.append(time.perf_counter() - began)
        found.append(statistics.median(times) * 1e3)
    return found


def rows() -> Iterator[Row]:
    """Yield each measurement."""
    kinds = (
        ("a line for each person", personal_rules, "person500@example.edu"),
        ("the last of them matches", personal_rules, "somebody@example.edu"),
        ("open ends", pattern_rules, "somebody@example.edu"),
        ("no fixed text", loose_rules, "somebody@example.edu"),
    )
    for what, make, username in kinds:
        chain, identities, theirs = _chain(make(RULES)), [_identity(username)], _published(make(RULES))
        yield Row(
            f"expression mappings, {RULES:,} rules, {what}", "per s",
            per_second(partial(chain.map, identities)),
            "globus-identity-mapping" if theirs else "",
            per_second(partial(theirs, username)) if theirs else None,
            more_is_better=True,
        )  # fmt: skip
    times = pathological_ms()
    growth = times[-1] / times[0] / (LENGTHS[-1] / LENGTHS[0])
    note = ", ".join(f"{length:,}: {ms:.2f} ms" for length, ms in zip(LENGTHS, times, strict=True))
    yield Row(
        f"pathological pattern, {LENGTHS[-1]:,} characters", "ms", times[-1], note=f"{growth:.2f} of linear; {note}"
    )


def main() -> int:
    """Print the table."""
    Console(highlight=False, width=200).print(table(list(rows())))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main())
