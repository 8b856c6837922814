"""Who may connect to the interchange: holders of the one client key that this user endpoint has made.

Stands in for zmq.auth.thread.ThreadAuthenticator, which would bring asyncio (and 5 MB) into the process.
Answers ZeroMQ's authentication requests (ZAP, https://rfc.zeromq.org/spec/27/) on a thread of its own.
"""

from __future__ import annotations

import hmac
import os
import threading

import zmq
import zmq.auth

_ENDPOINT = "inproc://zeromq.zap.01"


class KeyAuthenticator:
    """The part of ThreadAuthenticator that Parsl uses."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._keys: tuple[bytes, ...] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)

    def start(self) -> None:
        """Answer from now on; no peer is let in before `configure_curve`."""
        self._socket.bind(_ENDPOINT)
        self._thread.start()

    def configure_curve(self, domain: str = "*", location: str | os.PathLike[str] = ".") -> None:
        """Admit peers with a key in the directory `location`; `domain` is ignored."""
        keys = zmq.auth.load_certificates(os.fspath(location))
        self._keys = tuple(zmq.utils.z85.decode(key) for key in keys)

    def stop(self) -> None:
        """Stop answering."""
        self._ended.set()

    def _serve(self) -> None:
        try:
            while not self._ended.is_set():
                if self._socket.poll(1000):
                    self._answer(self._socket.recv_multipart())
        except zmq.ZMQError:  # the context ended, and the process with it
            return

    def _answer(self, request: list[bytes]) -> None:
        version, sequence, mechanism, credentials = request[0], request[1], request[5], request[6:]
        known = mechanism == b"CURVE" and any(hmac.compare_digest(credentials[0], key) for key in self._keys)
        code, text = (b"200", b"OK") if known else (b"400", b"unknown key")
        self._socket.send_multipart([version, sequence, code, text, b"worker" if known else b"", b""])
