"""The events that `blocks` reports to the engine, from its own thread."""

from __future__ import annotations

from dataclasses import dataclass

from mep_wire.errors import MepError
from user_endpoint.engines.htex.executor import InterchangeClient


@dataclass(frozen=True, slots=True)
class ExecutorReady:
    """The executor takes tasks. The reader of this event closes its task sockets."""

    client: InterchangeClient


@dataclass(frozen=True, slots=True)
class BlockLost:
    """The job of a block has ended."""

    block_id: str


@dataclass(frozen=True, slots=True)
class BlocksFailed:
    """No task that waits can run, nor any that comes before `until` (on time.monotonic), for this reason."""

    error: MepError
    until: float
    """Infinite where the engine is over."""
    begun: set[int] | None = None
    """Where it is over: the tasks that workers had begun. They can't begin another. None if that can't be known."""


@dataclass(frozen=True, slots=True)
class InterchangeRestarted:
    """The interchange has died, and with it every block; Ready follows."""

    begun: set[int]
    """The tasks that workers of those blocks had begun. Those workers can't begin another."""


@dataclass(frozen=True, slots=True)
class BlockTrouble:
    """Something has failed and is tried again, while tasks wait."""

    text: str


BlockEvent = ExecutorReady | BlockLost | BlocksFailed | InterchangeRestarted | BlockTrouble
