"""The order in which an engine's waiting tasks are begun: by priority, and by age among those of one priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from user_endpoint.engines.base import EngineTask


def enqueue(queue: deque[EngineTask], tasks: Iterable[EngineTask]) -> None:
    """Add tasks to a queue that is in this order, each behind those that it may not overtake."""
    for task in tasks:
        if not queue or queue[-1].priority >= task.priority:
            queue.append(task)
            continue
        at = next(at for at, waiting in enumerate(queue) if waiting.priority < task.priority)
        queue.insert(at, task)
