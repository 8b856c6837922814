"""The thread that asks the relay about tasks which the result stream may never bring.

A task's record can be gone from the relay: past its retention time before anybody read it, or missing from a
database that was restored. The stream says nothing of such a task. After each break of the stream, and now and
then, this thread asks the relay about pending tasks. Run by the Session, which interprets the answers.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from mep_sdk.client import Client
from mep_wire import api
from mep_wire.errors import MepError

log = logging.getLogger("mep_sdk")

EVERY_S = 180.0
"""How often to ask while something is pending."""
SETTLE_S = 3.0
"""How long a reconnected stream has to bring the tasks that ended during the break. The wait is up to twice as long,
so that the clients of a restarted relay do not all ask at once."""
LOOK_AFTER_S = 10.0
LONGEST_LOOK_PAUSE_S = 60.0
LOOK_AGAIN_S = 2.0
"""How often to ask where tasks are: one page of the oldest."""
PAGE = 256
_PAUSE_S = 0.05
_RETRY_S = 5.0


class StatusPoller(threading.Thread):
    """Asks for the tasks that `pending` names; `found` gets those that have ended and the ids that the relay does
    not know."""

    def __init__(
        self,
        client: Client,
        pending: Callable[[], list[str]],
        found: Callable[[list[api.StreamedResult], list[str]], None],
        look: Callable[[], None] | None = None,
    ) -> None:
        """`look` asks where pending tasks are: first after LOOK_AFTER_S, then ever more rarely, and after
        `look_soon`."""
        super().__init__(name="mep-recheck", daemon=True)
        self._client, self._pending, self._found = client, pending, found
        self._change = threading.Condition()
        self._stopping = False
        self._look, self._look_pause_s, self._looked = look, LOOK_AFTER_S, 0.0
        self._due, self._look_due = time.monotonic() + EVERY_S, time.monotonic() + LOOK_AFTER_S

    def look_soon(self) -> None:
        """Ask where pending tasks are, LOOK_AGAIN_S after the last time or now."""
        due = max(time.monotonic(), self._looked + LOOK_AGAIN_S)
        if due < self._look_due:
            with self._change:
                self._look_due = due
                self._change.notify_all()

    def soon(self) -> None:
        """Ask once the stream, which is back after a break, has had time to bring what it has."""
        with self._change:
            self._due = min(self._due, time.monotonic() + SETTLE_S * random.uniform(1, 2))  # noqa: S311 - no secret
            self._change.notify_all()

    def stop(self) -> None:
        """End the thread soon; do not wait for it."""
        with self._change:
            self._stopping = True
            self._change.notify_all()

    def run(self) -> None:
        """Ask whenever it is time to."""
        while (what := self._wait_until_due()) is not None:
            try:
                what()
            except MepError as error:
                log.debug("could not ask the relay for pending tasks: %s", error)

    def _wait_until_due(self) -> Callable[[], None] | None:
        """Wait for the next thing to do, and return it; None where the thread is to end."""
        with self._change:
            while not self._stopping and (left_s := self._next_due() - time.monotonic()) > 0:
                self._change.wait(left_s)
            if self._stopping:
                return None
            now = time.monotonic()
            if self._due <= now:
                self._due = now + EVERY_S
                return lambda: self._ask(self._pending())
            self._looked = now
            self._look_pause_s = min(2 * self._look_pause_s, LONGEST_LOOK_PAUSE_S)
            self._look_due = now + self._look_pause_s
            return self._look

    def _next_due(self) -> float:
        return self._due if self._look is None else min(self._due, self._look_due)

    def _ask(self, task_ids: Sequence[str]) -> None:
        for start in range(0, len(task_ids), PAGE):
            self._ask_page(task_ids[start : start + PAGE])
            with self._change:
                if self._change.wait_for(lambda: self._stopping, _PAUSE_S):
                    return

    def _ask_page(self, task_ids: Sequence[str]) -> None:
        """Request these, and again those that did not fit in one answer. Raises MepError."""
        while task_ids:
            ended, missing, withheld = self._client.endings(task_ids, retry_for_s=_RETRY_S)
            self._found(ended, missing)
            task_ids = withheld if len(withheld) < len(task_ids) else []
