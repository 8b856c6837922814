"""Commands as functions: ShellFunction and MPIFunction, and what running one of them gives.

Only the command line and a few settings travel; they are run by this module in the worker, as the person.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import IO, Any

from mep_sdk.errors import MpiUnavailable

TIMED_OUT = 124
"""The return code of a command that ran past its walltime, as timeout(1) has it."""
_GRACE_S = 5.0
_MAX_SNIPPET_BYTES = 4 * 1024 * 1024


class ShellResult:
    """The result of a command. `stdout` and `stderr` are the last lines of each."""

    def __init__(self, cmd: str, stdout: str, stderr: str, returncode: int, exception_name: str | None = None) -> None:
        self.cmd, self.stdout, self.stderr = cmd, stdout, stderr
        self.returncode, self.exception_name = returncode, exception_name

    def __str__(self) -> str:
        return f"Command {self.cmd} returned with exit status: {self.returncode}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(returncode={self.returncode}, cmd={self.cmd!r})"


class ShellFunction:
    """A command line to submit like a function; its keyword arguments fill the braces in it. Braces of the
    command's own are doubled: `awk '{{print $1}}' {path}`.

    Values are inserted unquoted: quote untrusted ones (`shlex.quote`). A return code other than 0
    doesn't fail the task: check the result's `returncode`.
    """

    def __init__(
        self,
        cmd: str,
        stdout: str | None = None,
        stderr: str | None = None,
        walltime: float | None = None,
        snippet_lines: int = 1000,
    ) -> None:
        """Describe the command. `stdout` and `stderr` are files on the endpoint to append to. After `walltime`
        seconds the command and its descendants are ended, and the return code is 124. `snippet_lines` is the
        number of lines of each stream that come back."""
        self.cmd, self.stdout, self.stderr = cmd, stdout, stderr
        self.walltime, self.snippet_lines = walltime, snippet_lines

    @property
    def __name__(self) -> str:  # what the function is registered as
        return f"{type(self).__name__}: {self.cmd}"

    def __call__(self, **kwargs: Any) -> ShellResult:
        """Run the command with bash and return its result. In the worker."""
        return self._run(self._filled(kwargs))

    def _filled(self, values: dict[str, Any]) -> str:
        try:
            return self.cmd.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            missing = f"nothing was given for {{{error.args[0]}}}" if isinstance(error, KeyError) else str(error)
            raise type(error)(
                f"the braces of {self.cmd!r} cannot be filled: {missing}. Values are keyword arguments; "
                "braces that the command is to have itself are doubled: {{ }}"
            ) from None

    def _run(self, command: str) -> ShellResult:
        with _output(self.stdout) as stdout, _output(self.stderr) as stderr:
            process = subprocess.Popen(
                ["/bin/bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # so that all that it starts can be ended together
            )
            returncode, exception_name = _wait(process, self.walltime)
            lines = self.snippet_lines
            return ShellResult(command, _tail(stdout, lines), _tail(stderr, lines), returncode, exception_name)


class MPIFunction(ShellFunction):
    """A command line that the endpoint's MPI launcher starts, on the nodes and ranks of the executor's
    `resource_specification`. Needs an endpoint with an engine that runs MPI tasks."""

    def __call__(self, **kwargs: Any) -> ShellResult:
        """Run the command through the launcher. In the worker. Raises MpiUnavailable."""
        if not os.environ.get("PARSL_MPI_PREFIX"):
            raise MpiUnavailable
        return self._run(f"$PARSL_MPI_PREFIX {self._filled(kwargs)}")


def _output(name: str | None) -> IO[bytes]:
    if name is None:
        return tempfile.TemporaryFile()
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+b")


def _wait(process: subprocess.Popen[bytes], walltime: float | None) -> tuple[int, str | None]:
    """Return the return code, and the name of the failure."""
    with contextlib.ExitStack() as unless_ended:
        unless_ended.callback(_end, process)  # also where the worker is told to stop: it must not outlive the task
        try:
            returncode = process.wait(walltime)
        except subprocess.TimeoutExpired:
            return TIMED_OUT, "subprocess.TimeoutExpired"
        unless_ended.pop_all()
    return returncode, "subprocess.CalledProcessError" if returncode else None


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    process.wait()


def _tail(file: IO[bytes], lines: int) -> str:
    """Return the last lines of a file, as text, without reading more of it than could be wanted."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_SNIPPET_BYTES))
    return b"".join(file.read().splitlines(keepends=True)[-lines:] if lines > 0 else []).decode("utf-8", "replace")
