"""What a notebook shows for futures, executors and results: small tables. All text in them is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from mep_wire.text import printable_lines

_CELL = "text-align:left;vertical-align:top"
_SHOWN_CHARS, _SHOWN_LINES = 1024, 10
_BAR = "height:0.6em;width:16em;background:#ddd"
_COLOURS = {"succeeded": "#2a8", "failed": "#c33", "cancelled": "#999", "running": "#48c"}


def table(title: str, rows: Iterable[tuple[str, str]], *, extra: str = "") -> str:
    """Return a table of names and values, without the empty ones. `extra` is HTML that comes before it."""
    cells = "".join(
        f'<tr><th style="{_CELL}">{escape(name)}</th><td style="{_CELL}"><pre style="margin:0">'
        f"{escape(printable_lines(value))}</pre></td></tr>"
        for name, value in rows
        if value
    )
    return f"<div><strong>{escape(title)}</strong>{extra}<table>{cells}</table></div>"


def last_lines(output: str) -> str:
    """Return the end of what a task or a command printed."""
    return "\n".join(output.strip("\n")[-_SHOWN_CHARS:].splitlines()[-_SHOWN_LINES:])


def bar(counts: Mapping[str, int]) -> str:
    """Return a bar with a part for each state that tasks may end in, and for the running ones."""
    total = sum(counts.values()) or 1
    parts = "".join(
        f'<div style="float:left;height:100%;width:{100 * counts[state] / total:.4g}%;background:{colour}"></div>'
        for state, colour in _COLOURS.items()
        if counts.get(state)
    )
    return f'<div style="{_BAR}">{parts}</div>'


def seconds(elapsed_s: float) -> str:
    """Return a time as people read it: 12.3 s, or 1:02:03."""
    if elapsed_s < 60:
        return f"{elapsed_s:.1f} s"
    minutes, rest = divmod(int(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
