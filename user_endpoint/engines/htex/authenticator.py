"""Who may connect to the interchange: holders of the one client key that this user endpoint has made.

Stands in for zmq.auth.thread.ThreadAuthenticator, which would bring asyncio (and 5 MB) into the process.
Answers on a thread of its own.
"""

from __future__ import annotations

import hmac
import os
import threading

import zmq
import zmq.auth

from mep_link.zap import ZapHandler


class KeyAuthenticator:
    """The part of ThreadAuthenticator that Parsl uses."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._keys: tuple[bytes, ...] = ()
        self._ended = threading.Event()

    def start(self) -> None:
        """Answer from now on; no peer is let in before `configure_curve`."""
        handler = ZapHandler(self._context, self._admit)
        threading.Thread(target=self._serve, args=(handler,), name="zap", daemon=True).start()

    def configure_curve(self, domain: str = "*", location: str | os.PathLike[str] = ".") -> None:
        """Admit peers with a key in the directory `location`; `domain` is ignored."""
        directory = os.fspath(location)  # not load_certificates: it takes the name for a pattern
        found = [name for name in os.listdir(directory) if name.endswith(".key")]  # noqa: PTH208
        keys = [zmq.auth.load_certificate(f"{directory}/{name}")[0] for name in sorted(found)]
        self._keys = tuple(zmq.utils.z85.decode(key) for key in keys)

    def stop(self) -> None:
        """Stop answering."""
        self._ended.set()

    def _serve(self, handler: ZapHandler) -> None:
        try:
            while not self._ended.is_set():
                if handler.wait(1000):
                    handler.answer_waiting()
        except zmq.ZMQError:  # the context ended, and the process with it
            return

    def _admit(self, key: bytes) -> bytes | None:
        return b"worker" if any(hmac.compare_digest(key, each) for each in self._keys) else None
