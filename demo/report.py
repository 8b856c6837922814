"""The demo's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One line of the closing table."""

    who: str
    ran_as: str
    engine: str
    cold_s: float
    warm_s: float
    tasks_per_s: float


class Report:
    """Numbered steps, notes and the closing table."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self._steps += 1
        self.console.print(f"\n[bold]{self._steps}. {title}[/bold]", soft_wrap=True)

    def note(self, text: str) -> None:
        """Print one event."""
        self.console.print(f"   {text}", markup=False, soft_wrap=True)

    def progress(self) -> Progress:
        """Return a progress bar."""
        columns = (TextColumn("   {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self.console)

    def table(self, rows: Sequence[Row]) -> None:
        """Print the closing table."""
        table = Table(title="\nWhat it took (tasks per second: no-op tasks)", title_justify="left")
        for heading in ("who", "ran as", "engine"):
            table.add_column(heading, no_wrap=True)
        for heading in ("cold start", "warm median", "tasks per s"):
            table.add_column(heading, justify="right")
        for row in rows:
            numbers = f"{row.cold_s * 1000:.0f} ms", f"{row.warm_s * 1000:.2f} ms", f"{row.tasks_per_s:,.0f}"
            table.add_row(row.who, row.ran_as, row.engine, *numbers)
        self.console.print(table)
