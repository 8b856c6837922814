"""The output of running tasks on the person's own terminal: for an executor with `stream_output=True`.

Pieces of a stream come with their positions, so that a gap is seen and told, and nothing is printed twice. A thread
prints them, so that a terminal that is slow, or was stopped, holds up no result. So many characters wait for it at
most. Used by Submitter.
"""

from __future__ import annotations

import codecs
import re
import sys
import threading
from collections import deque

from mep_sdk.encoding import split_output
from mep_sdk.errors import DataCorrupt
from mep_sdk.foreign_code import attempt
from mep_sdk.task_output import MOST_BYTES
from mep_wire.api import StreamedOutput
from mep_wire.text import printable_lines

STREAMS = ("stdout", "stderr")
MOST_WAITING_CHARS = 1024 * 1024
"""How much waits for a slow terminal: what came last."""
_KEEP_IDLE_S = 5.0
_NOTE = re.compile(rb"\[([0-9][0-9,]{0,29}) bytes came before; [^\n]*\]\n")
"""What task_output puts before the end of a longer output."""
_utf_8 = codecs.getincrementaldecoder("utf-8")


class _Stream:
    """One stream of one attempt."""

    def __init__(self) -> None:
        self.position, self.text = 0, ""
        self._decoder = _utf_8("replace")

    def take(self, position: int, data: bytes) -> str:
        """Return the text of the new part of a piece, after a note of the gap before it."""
        missing = position - self.position
        if missing <= -len(data):
            return ""
        note = ""
        if missing > 0:
            note = f"{self._decoder.decode(b'', final=True)}\n[{missing:,} bytes left out]\n"
            self._decoder.reset()
        text = note + self._decoder.decode(data[max(0, -missing) :])
        self.position = position + len(data)
        self.text = (self.text + text)[-MOST_BYTES:]
        return text


class LiveText:
    """The output of one task, as it comes. Used by the one thread that brings its group's results."""

    def __init__(self) -> None:
        self._attempt = 0
        self._streams = (_Stream(), _Stream())

    @property
    def texts(self) -> tuple[str, str]:
        """Stdout and stderr so far: the end of each."""
        return self._streams[0].text, self._streams[1].text

    def take(self, item: StreamedOutput) -> str:
        """Return the text to print for a piece that came: empty for one that is known."""
        if item.attempt < self._attempt or item.stream not in (0, 1):
            return ""
        note = ""
        if item.attempt > self._attempt:
            if any(self.texts):
                note = f"\n[the task has begun again: attempt {item.attempt}]\n"
            self._attempt, self._streams = item.attempt, (_Stream(), _Stream())
        return note + self._streams[item.stream].take(item.position, item.data)

    def rest(self, payload: bytes) -> tuple[str, str]:
        """Return what a result's payload has of both streams beyond what came before."""
        try:
            ends = split_output(payload)[:2]
        except DataCorrupt:
            return "", ""
        return self._rest(0, ends[0]), self._rest(1, ends[1])

    def _rest(self, stream: int, data: bytes) -> str:
        of = self._streams[stream]
        note = _NOTE.match(data)
        if note is None or not of.position:
            return of.take(0, data) if note is None else data.decode("utf-8", "replace")
        return of.take(int(note[1].replace(b",", b"")), data[note.end() :])


class Printer:
    """Prints texts in order, in a thread of its own. Thread-safe."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._queue: deque[tuple[str, int, str]] = deque()
        self._chars = self._dropped = 0
        self._busy = False
        self._thread: threading.Thread | None = None
        self._open: tuple[str, int] | None = None
        """The task and the stream with a line that was printed in part."""

    def put(self, task_id: str, stream: int, text: str) -> None:
        """Have a text printed; an empty one ends the line of the task, if it is in the middle of one."""
        with self._change:
            self._queue.append((task_id, stream, text))
            self._chars += len(text)
            while self._chars > MOST_WAITING_CHARS and len(self._queue) > 1:
                dropped = len(self._queue.popleft()[2])
                self._chars -= dropped
                self._dropped += dropped
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="mep-output", daemon=True)
                if attempt(thread.start)[1] is None:  # else it is tried again with the next text
                    self._thread = thread
            self._change.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything is printed; return whether it is."""
        with self._change:
            return self._change.wait_for(lambda: not self._busy and (not self._queue or not self._thread), timeout_s)

    def _run(self) -> None:
        while (taken := self._next()) is not None:
            dropped, (task_id, stream, text) = taken
            if dropped:
                note = f"[{dropped:,} characters left out: the terminal is slower than the tasks]\n"
                attempt(self._print, "", 1, note)
            attempt(self._print, task_id, stream, text)  # the stream may be closed, or an object of the person's

    def _next(self) -> tuple[int, tuple[str, int, str]] | None:
        with self._change:
            self._busy = False
            self._change.notify_all()
            if not self._change.wait_for(lambda: self._queue, _KEEP_IDLE_S):
                self._thread = None
                return None
            self._busy = True
            item = self._queue.popleft()
            self._chars -= len(item[2])
            dropped, self._dropped = self._dropped, 0
            return dropped, item

    def _print(self, task_id: str, stream: int, text: str) -> None:
        """Print as it stands there, but for control characters. A line that is drawn again and again becomes lines."""
        if not text and (self._open is None or self._open[0] != task_id):
            return
        if self._open is not None and (not text or self._open != (task_id, stream)):
            self._write(self._open[1], "\n")
            self._open = None
        if text:
            lines = text.replace("\r\n", "\n").replace("\r", "\n")
            self._open = None if lines.endswith("\n") else (task_id, stream)
            self._write(stream, printable_lines(lines))

    @staticmethod
    def _write(stream: int, text: str) -> None:
        out = getattr(sys, STREAMS[stream])
        out.write(text)
        out.flush()
