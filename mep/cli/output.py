"""Output of `mep`: JSON on request, tables on a terminal, plain lines elsewhere.

Foreign text goes through `printable` when it becomes part of a line. In addition, `main` has `escape_output` escape the
control characters of all output, tracebacks included.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from mep.boundary.log import bare_line
from mep.boundary.text import printable, set_format


def emit(value: Any, text: str, *, as_json: bool) -> None:
    """Print `value` as JSON, or `text`."""
    click.echo(json.dumps(value, indent=2) if as_json else text)


def warn(warnings: Sequence[str]) -> None:
    """Print warnings to standard error."""
    for warning in warnings:
        click.echo(f"warning: {printable(warning)}", err=True)


class _LogStream(io.TextIOBase):
    """A standard error that is a log in JSON: each line becomes an object."""

    def __init__(self, process: str) -> None:
        self._process, self._rest = process, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                bare_line(self._process, line)
        return len(text)


def log_errors(process: str) -> None:
    """Write from now on what this process says on standard error as lines of JSON by `process`."""
    set_format("json")
    sys.stderr = _LogStream(process)


def fields_text(value: Mapping[str, Any]) -> str:
    """Return a mapping as aligned lines, without empty values."""
    shown = {key: item for key, item in value.items() if item not in ("", None, [], {})}
    width = max((len(key) for key in shown), default=0)
    return "\n".join(f"{key.replace('_', ' '):<{width}}  {printable(str(item))}" for key, item in shown.items())


def emit_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, empty: str) -> None:
    """Print rows as JSON, as a table on a terminal, or as tab-separated lines."""
    if as_json:
        click.echo(json.dumps(list(rows), indent=2))
    elif not rows:
        click.echo(empty)
    elif sys.stdout.isatty():
        print_table(rows, columns)
    else:
        for row in rows:
            click.echo("\t".join(printable(str(row[column])) for column in columns))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows as a table on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a truncated id is useless
    for row in rows:
        table.add_row(*(Text(printable(str(row[column]))) for column in columns))
    sys.stdout.flush()
    Console(file=sys.__stdout__).print(table)  # its own colours must not be escaped
