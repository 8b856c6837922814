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
PAGE = 256
_PAUSE_S = 0.05
_RETRY_S = 5.0


class Recheck(threading.Thread):
    """Asks for the tasks that `pending` names; `found` gets those that have ended and the ids that the relay does
    not know."""

    def __init__(
        self,
        client: Client,
        pending: Callable[[], list[str]],
        found: Callable[[list[api.StreamedResult], list[str]], None],
    ) -> None:
        super().__init__(name="mep-recheck", daemon=True)
        self._client, self._pending, self._found = client, pending, found
        self._change = threading.Condition()
        self._stopping = False
        self._due = time.monotonic() + EVERY_S

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
        while self._wait_until_due():
            try:
                self._ask(self._pending())
            except MepError as error:
                log.debug("could not ask the relay for pending tasks: %s", error)

    def _wait_until_due(self) -> bool:
        with self._change:
            while not self._stopping and (left_s := self._due - time.monotonic()) > 0:
                self._change.wait(left_s)
            self._due = time.monotonic() + EVERY_S
            return not self._stopping

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
