"""A progress bar over an executor's tasks, drawn by tqdm or a class with its interface. Called by Executor."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

from mep_sdk.futures import TaskFuture


def make_bar(progress: Any, unit: str = "task") -> Any:
    """Return a bar: by `progress`, which is called as tqdm's class is, or by tqdm itself where it is True.

    Raises ValueError without tqdm.
    """
    if progress is not True:
        return progress(total=0, unit=unit)
    try:
        from tqdm import tqdm

        if importlib.util.find_spec("ipywidgets"):  # without it, tqdm's bar for notebooks warns
            from tqdm.auto import tqdm
    except ImportError:
        raise ValueError(
            "progress=True draws with tqdm, which is not installed: pip install tqdm. Or pass progress=CLASS with a "
            "class that is called as tqdm's: CLASS(total=0, unit='task')"
        ) from None
    return tqdm(total=0, unit=unit)


class Progress:
    """Counts tasks as they are submitted and as they end. Thread-safe."""

    def __init__(self, progress: Any) -> None:
        """Raises ValueError: see make_bar."""
        self._bar = make_bar(progress)
        self._change = threading.Lock()
        self._left, self._finishing, self._closed = 0, False, False

    def submitted(self, future: TaskFuture[Any]) -> None:
        """Count a task, and its end."""
        with self._change:
            self._left += 1
            self._bar.total = (self._bar.total or 0) + 1
        future.add_done_callback(self._ended)

    def finish(self) -> None:
        """Close the bar once the tasks have ended that it counts."""
        with self._change:
            self._finishing = True
            self._close_if_done()

    def _ended(self, _: object) -> None:
        with self._change:
            self._left -= 1
            self._bar.update(1)
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._finishing and self._left == 0 and not self._closed:
            self._closed = True
            self._bar.close()
