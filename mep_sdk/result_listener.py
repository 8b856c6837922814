"""The thread that takes a task group's results off the relay's stream, reconnecting for as long as it takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from mep_link.backoff import Backoff
from mep_sdk.http import describe, log_failure
from mep_sdk.result_stream import ResultStream, refusal_of
from mep_sdk.settings import ClientSettings
from mep_wire import api
from mep_wire.errors import MepError

log = logging.getLogger("mep_sdk")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 15.0
_KEEP_UNUSED_S = 15.0
"""How long a connection is kept for a group that the relay does not have yet; the relay itself gives it 30 s."""


class ResultListener(threading.Thread):
    """Streams one task group's endings into `deliver`, each at least once. A relay that is away is asked again and
    again; one that refuses ends the thread with a call of `refused`."""

    def __init__(
        self,
        settings: ClientSettings,
        task_group_id: str,
        deliver: Callable[[list[api.StreamedResult]], None],
        refused: Callable[[str, MepError], None],
        back: Callable[[], None] | None = None,
    ) -> None:
        """`back` is called whenever the stream is up again after a break."""
        super().__init__(name=f"mep-results-{task_group_id[:8]}", daemon=True)
        self.task_group_id = task_group_id
        self._settings, self._deliver, self._refused = settings, deliver, refused
        self._cursor = 0
        self._change = threading.Condition()
        self._known = self._stopping = self._rewind = self._broken = False
        self._back = back
        self._stream: ResultStream | None = None
        self._down_since: float | None = None

    def group_known(self) -> None:
        """Tell that the relay has the group, so that it can be subscribed to."""
        if not self._known:
            with self._change:
                self._known = True
                self._change.notify_all()

    def replay(self) -> None:
        """Stream again from the group's first ending."""
        with self._change:
            self._rewind = self._known = True
            self._change.notify_all()
            if self._stream is not None:
                self._stream.wake()

    def stop(self) -> None:
        """End the thread soon; do not wait for it."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
            if self._stream is not None:
                self._stream.wake()

    def down_for_s(self) -> float:
        """Return for how many seconds the stream has been down; 0 while it is up."""
        since = self._down_since
        return 0.0 if since is None else time.monotonic() - since

    def run(self) -> None:
        """Connect, subscribe, deliver; again after every break."""
        self._down_since = time.monotonic()
        backoff = Backoff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while not self._stopping:
            try:
                self._stream_once(backoff)
                self._await_group(None)
            except OSError as error:
                self._pause(error, backoff)
            except MepError as error:
                log.error("relay refuses the result stream: %s", error)
                self._refused(self.task_group_id, error)
                return
            except Exception as error:  # noqa: BLE001 - the outermost loop of the thread: waiting callers must get the error
                log_failure("reading results failed")
                text = f"Reading results failed: {type(error).__name__}: {error}"
                self._refused(self.task_group_id, MepError(text=text))
                return

    def _stream_once(self, backoff: Backoff) -> None:
        stream = ResultStream(self._settings)
        try:
            with self._change:
                self._stream = stream
            # The first connection is made while the first submission is on its way, to save its time.
            if not self._await_group(_KEEP_UNUSED_S):
                return
            stream.subscribe(self.task_group_id, self._cursor)
            self._up(backoff)
            self._follow(stream)
        finally:
            with self._change:
                self._stream = None
            stream.close()

    def _await_group(self, timeout_s: float | None) -> bool:
        """Wait until the relay has the group or the thread is to stop; return whether to go on."""
        with self._change:
            self._change.wait_for(lambda: self._known or self._stopping, timeout_s)
            return self._known and not self._stopping

    def _follow(self, stream: ResultStream) -> None:
        while not self._stopping:
            if self._rewind:
                self._rewind, self._cursor = False, 0
                return  # and come back with a new subscription
            for frame in stream.receive():
                if isinstance(frame, api.StreamRefused):
                    raise refusal_of(frame)
                self._deliver(frame.results)
                self._cursor = frame.cursor

    def _up(self, backoff: Backoff) -> None:
        if backoff.attempts > 1:
            log.warning("result stream of relay %s is back", self._settings.relay_url)
        backoff.reset()
        self._down_since = None
        if self._broken:
            self._broken = False
            if self._back is not None:
                self._back()

    def _pause(self, error: OSError, backoff: Backoff) -> None:
        self._broken = True
        if self._down_since is None:
            self._down_since = time.monotonic()
        pause_s = backoff.next_pause_s()
        # The first break is often a restart of the relay and not worth a word.
        level = logging.WARNING if backoff.attempts == 2 else logging.DEBUG
        log.log(
            level,
            "result stream of relay %s is down (%s), retrying (%d)",
            self._settings.relay_url,
            describe(error),
            backoff.attempts,
        )
        with self._change:
            self._change.wait_for(lambda: self._stopping, pause_s)
