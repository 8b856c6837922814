"""What the command prints: tables on a terminal, lines with tabs in a pipe, JSON where it is asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mep_wire.text import printable, printable_lines


def say(text: str = "") -> None:
    """Print lines for a person, on standard output."""
    sys.stdout.write(printable_lines(text) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print lines that are no result, on standard error."""
    sys.stderr.write(printable_lines(text) + "\n")
    sys.stderr.flush()


def as_json(value: Any) -> None:
    """Print a value as JSON; a value that JSON lacks becomes its repr."""
    sys.stdout.write(json.dumps(value, indent=2, default=repr) + "\n")


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows: on a terminal in columns under heads, in a pipe with tabs and without heads."""
    texts = [[printable(_cell(each)) for each in row] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(row) + "\n" for row in texts)
        return
    shown = [[head.upper() for head in heads], *texts]
    widths = [max(len(row[column]) for row in shown) for column in range(len(heads))]
    for row in shown:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")


def fields(values: Mapping[str, object]) -> None:
    """Print a name and a value on each line."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        text = printable(_cell(value))
        sys.stdout.write(f"{name.ljust(width)}  {text}\n" if sys.stdout.isatty() else f"{name}\t{text}\n")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
