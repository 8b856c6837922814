"""One line of the benchmark's table, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

_UNITS = {"ms": "{:,.2f} ms", "s": "{:.3f} s", "per s": "{:,.0f} per s", "MB": "{:.1f} MB", "%": "{:.1f} %"}


@dataclass(frozen=True)
class Row:
    """One measurement. `theirs` is the same work done by `beside`, if there is something to compare.

    `goal` is in the same unit; `goal_ratio` is a bound on ours divided by theirs. `more_is_better` says whether
    the measurement must be above or below them.
    """

    work: str
    unit: str
    ours: float | None
    beside: str = ""
    theirs: float | None = None
    goal: float | None = None
    goal_ratio: float | None = None
    more_is_better: bool = False
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours divided by theirs."""
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def reached(self) -> bool | None:
        """Whether every goal is reached, or None if there is nothing to compare."""
        pairs = [(self.ours, self.goal), (self.ratio, self.goal_ratio)]
        known = [(value, bound) for value, bound in pairs if value is not None and bound is not None]
        if not known:
            return None
        return all(value >= bound if self.more_is_better else value <= bound for value, bound in known)


def _shown(value: float | None, unit: str) -> str:
    return "-" if value is None else _UNITS[unit].format(value)


def _goal(row: Row) -> str:
    side = "at least " if row.more_is_better else ""
    parts = [_shown(row.goal, row.unit)] if row.goal is not None else []
    if row.goal_ratio is not None:
        parts.append(f"{row.goal_ratio:g} times {row.beside}")
    return side + " and ".join(parts) if parts else ""


def table(rows: Sequence[Row]) -> Table:
    """Return the table of all rows."""
    made = Table()
    for heading in ("work", "MEP", "beside", "", "ratio", "goal", "reached", ""):
        right = heading in {"MEP", "ratio"}
        made.add_column(heading, justify="right" if right else "left", no_wrap=bool(heading))
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        reached = {True: "yes", False: "no", None: ""}[row.reached]
        theirs = _shown(row.theirs, row.unit) if row.beside else ""
        made.add_row(row.work, _shown(row.ours, row.unit), row.beside, theirs, ratio, _goal(row), reached, row.note)
    return made
