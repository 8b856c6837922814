"""Runs one program with a deadline, no shell, and nothing of ours but its input; for callouts.

The program gets its own session (so its own process group), a clean environment, `/` as its directory, no descriptor
but its three, and cannot gain privilege. Its parent is subreaper.py: it inherits the program's orphans,
also those that left the session. It kills them all when the program ends, at the deadline, or when it writes too
much. It is not waited for past its own end: a grandchild that holds its output open delays nothing.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_OUTPUT_BYTES = 1024 * 1024
MAX_STDERR_BYTES = 16 * 1024
RUNNER_END_S = 3.0
"""How long to wait for the runner to kill the remaining processes and end."""
_CHUNK_BYTES = 65536
_RUNNER = Path(__file__).with_name("subreaper.py")


class CommandFailed(Exception):
    """The program could not be run successfully; the text says why, `stderr` is its standard error."""

    def __init__(self, reason: str, stderr: bytes = b"") -> None:
        self.stderr = stderr
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a program that ended with status 0."""

    stdout: bytes
    stderr: bytes


def run(
    argv: Sequence[str], data: bytes, timeout_s: float, max_output: int = MAX_OUTPUT_BYTES, *,
    program: int | None = None,
) -> Output:  # fmt: skip
    """Run `argv` with `data` on its standard input and return its output. Raises CommandFailed.

    `argv` begins with the program's path; `program` is its descriptor, where it was checked. More than `max_output`
    bytes of output are an error; of standard error the rest is dropped. Thread-safe.
    """
    deadline = time.monotonic() + timeout_s
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = _start(argv, theirs.fileno(), program)
        exchange = None
        try:
            exchange = _Exchange(process, ours, data, max_output)
            exchange.talk(deadline, timeout_s)
        except OSError as error:
            raise CommandFailed(f"cannot be talked to: {error}") from None
        finally:
            ours.close()  # which makes the runner kill the remaining processes
            _reap(process)
            if exchange:
                exchange.close()
    return _judge(exchange)


def _start(argv: Sequence[str], control: int, program: int | None) -> subprocess.Popen[bytes]:
    """Start the runner, which starts `argv`."""
    opened = -1
    try:
        if program is None:
            program = opened = os.open(argv[0], os.O_RDONLY | os.O_CLOEXEC)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_RUNNER), str(control), str(program), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={"PATH": PATH, "LANG": "C.UTF-8"},
            start_new_session=True,
            pass_fds=(control, program),
        )
    except (OSError, ValueError) as error:
        raise CommandFailed(f"cannot be run: {error}") from None
    finally:
        if opened >= 0:
            os.close(opened)


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait until the runner is gone. Where it still has something to kill it is left alone, and reaped later."""
    process.send_signal(signal.SIGCONT)  # the program, being of the same account, may have stopped it
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(RUNNER_END_S)


def _judge(exchange: _Exchange) -> Output:
    """Return the program's output if it succeeded. Raises CommandFailed."""
    what, _, detail = exchange.ending.partition(" ")
    stderr = bytes(exchange.stderr)
    if what == "error":
        raise CommandFailed(f"cannot be run: {detail}", stderr)
    if what == "signal":
        raise CommandFailed(f"was ended by {_signal_name(int(detail))}", stderr)
    if what != "exit":
        raise CommandFailed("was lost: the process that watches over it has ended", stderr)
    if detail != "0":
        raise CommandFailed(f"ended with status {detail}", stderr)
    return Output(bytes(exchange.stdout), stderr)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class _Exchange:
    """Feeds a program and takes its output until it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, data: bytes, max_output: int) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self.ending = ""
        """How the program ended, as the runner says; empty where the runner said nothing."""
        self._process = process
        self._control = control
        self._left = memoryview(data)
        self._max_output = max_output
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ, self._note_end)
        self._over = False
        assert process.stdin and process.stdout and process.stderr
        for stream, event, act in (
            (process.stdin, selectors.EVENT_WRITE, self._feed),
            (process.stdout, selectors.EVENT_READ, self._take_stdout),
            (process.stderr, selectors.EVENT_READ, self._take_stderr),
        ):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, event, act)

    def talk(self, deadline: float, timeout_s: float) -> None:
        """Return when the program has ended and its output has been read. Raises CommandFailed."""
        while not self._over:
            left = deadline - time.monotonic()
            ready = self._selector.select(left) if left > 0 else []
            if not ready:
                raise CommandFailed(f"did not end within {timeout_s:g} s and was killed", bytes(self.stderr))
            for key, _ in sorted(ready, key=lambda pair: pair[0].data == self._note_end):
                key.data()

    def close(self) -> None:
        """Close every descriptor of ours."""
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()

    def _note_end(self) -> None:
        """The program has ended: read the rest of the pipes, without waiting for other holders of them."""
        self._over = True
        self.ending = self._control.recv(_CHUNK_BYTES).decode(errors="replace")
        while self._take_stdout():
            pass
        while len(self.stderr) < MAX_STDERR_BYTES and self._take_stderr():
            pass

    def _feed(self) -> None:
        assert self._process.stdin
        try:
            self._left = self._left[os.write(self._process.stdin.fileno(), self._left[:_CHUNK_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]
        if not self._left:
            self._selector.unregister(self._process.stdin)
            self._process.stdin.close()

    def _take_stdout(self) -> bool:
        chunk = self._read(self._process.stdout)
        self.stdout += chunk
        if len(self.stdout) > self._max_output:
            raise CommandFailed(f"wrote more than {self._max_output} bytes and was killed", bytes(self.stderr))
        return bool(chunk)

    def _take_stderr(self) -> bool:
        chunk = self._read(self._process.stderr)
        self.stderr += chunk[: MAX_STDERR_BYTES - len(self.stderr)]
        return bool(chunk)

    def _read(self, stream: IO[bytes] | None) -> bytes:
        """Return the bytes that can be read at once; none at the end of the stream, which is then no longer watched."""
        assert stream
        if stream.closed:
            return b""
        try:
            chunk = os.read(stream.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return b""
        if not chunk:
            self._selector.unregister(stream)
            stream.close()
        return chunk
