"""Commands as functions: ShellFunction and MPIFunction, and what running one of them gives.

Only the command line and a few settings travel; they are run by this module in the worker, as the person.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from mep_sdk import task_output
from mep_sdk.errors import MpiUnavailable

TIMED_OUT = 124
"""The return code of a command that ran past its walltime, as timeout(1) has it."""
_GRACE_S = 5.0
_FOLLOW_S = 0.2
"""How often the output of a command is looked at whose person wants to see it while it runs."""
_MAX_ARGUMENT_BYTES = 100_000
_SHOWN_CHARS, _SHOWN_LINES = 1024, 10
_MAX_SNIPPET_BYTES = 4 * 1024 * 1024


class ShellResult:
    """The result of a command. `stdout` and `stderr` are the last lines of each."""

    def __init__(self, cmd: str, stdout: str, stderr: str, returncode: int, exception_name: str | None = None) -> None:
        self.cmd, self.stdout, self.stderr = cmd, stdout, stderr
        self.returncode, self.exception_name = returncode, exception_name

    def __str__(self) -> str:
        """The command, how it ended, and the end of its output."""
        said = [f"Command {self.cmd} returned with exit status: {self.returncode}"]
        for name, output in (("stdout", self.stdout), ("stderr", self.stderr)):
            if text := output.strip("\n"):
                shown = "\n".join(text[-_SHOWN_CHARS:].splitlines()[-_SHOWN_LINES:])
                cut = "" if shown == text else f" (its end; .{name} has more)"
                said.append(f"{name}{cut}:\n{shown}")
        return "\n".join(said)

    def _repr_html_(self) -> str:
        from mep_sdk import html  # only notebooks need it

        rows = [("command", self.cmd), ("return code", str(self.returncode))]
        output = [(name, html.last_lines(getattr(self, name))) for name in ("stdout", "stderr")]
        return html.table("ShellResult", [*rows, *output])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(returncode={self.returncode}, cmd={self.cmd!r})"


class ShellFunction:
    """A command line to submit like a function; its keyword arguments fill the braces in it. Braces of the
    command's own are doubled: `awk '{{print $1}}' {path}`.

    Each value is quoted for bash, so that it is one word or a part of the quotes around it: `{path}`, `"{path}.log"`.
    `{options|raw}` inserts a value as it is. A return code other than 0 doesn't fail the task: check the result's
    `returncode`.
    """

    # For those that an earlier release has registered.
    stdin: str | bytes | None = None
    return_dict = quote = False

    def __init__(
        self,
        cmd: str,
        stdout: str | os.PathLike[str] | None = None,
        stderr: str | os.PathLike[str] | None = None,
        walltime: float | None = None,
        snippet_lines: int = 1000,
        name: str | None = None,
        return_dict: bool = False,
        *,
        stdin: str | os.PathLike[str] | bytes | None = None,
        quote: bool = True,
    ) -> None:
        """Describe the command. `stdout` and `stderr` are files on the endpoint to append to, `stdin` is one to read,
        or bytes. After `walltime` seconds the command and its descendants are ended, and the return code is 124.
        `snippet_lines` is the number of lines of each stream that come back. `name` is what it is registered as.
        `return_dict` gives a dict with the fields of a ShellResult. `quote=False` inserts all values as they are.
        Raises ValueError or TypeError for what cannot be."""
        if not isinstance(cmd, str):
            raise TypeError(f"cmd is a command line such as 'ls {{path}}', not {cmd!r}")
        if "\0" in cmd:
            raise ValueError("cmd holds a NUL character, which no command line can")
        self.cmd = cmd
        self.stdout, self.stderr = _file("stdout", stdout), _file("stderr", stderr)
        self.stdin = stdin if isinstance(stdin, bytes) else _file("stdin", stdin, or_bytes=" or bytes")
        self.walltime, self.snippet_lines = _seconds(walltime), _lines(snippet_lines)
        self.__name__ = _identifier(name or type(self).__name__)
        self.return_dict, self.quote = return_dict, quote

    def __repr__(self) -> str:
        return f"{type(self).__name__}(cmd={self.cmd!r}, name={self.__name__!r}, walltime={self.walltime})"

    def __call__(self, /, **kwargs: Any) -> ShellResult:
        """Run the command with bash and return its result. In the worker."""
        return self._run(self._filled(kwargs))

    def _filled(self, values: dict[str, Any]) -> str:
        from mep_sdk.shell_quoting import fill  # only workers need it

        try:
            command = fill(self.cmd, values, quote=self.quote)
        except (KeyError, IndexError, ValueError) as error:
            missing = f"nothing was given for {{{error.args[0]}}}" if isinstance(error, KeyError) else str(error)
            raise type(error)(
                f"the braces of {self.cmd[:_SHOWN_CHARS]!r} cannot be filled: {missing}. Values are keyword arguments; "
                "braces that the command is to have itself are doubled: {{ }}"
            ) from None
        if "\0" in command:
            raise ValueError("a value holds a NUL character, which no command line can")
        return command

    def _run(self, command: str) -> ShellResult:
        with (
            _output(self.stdout) as stdout,
            _output(self.stderr) as stderr,
            _input(self.stdin) as stdin,
            _script(command) as (arguments, descriptors),
        ):
            followed = _followed([stdout, stderr])
            process = subprocess.Popen(
                ["/bin/bash", *arguments],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=descriptors,
                start_new_session=True,  # so that all that it starts can be ended together
            )
            returncode, exception_name = _wait(process, self.walltime, followed)
            lines = self.snippet_lines
            result = ShellResult(command, _tail(stdout, lines), _tail(stderr, lines), returncode, exception_name)
            return cast("ShellResult", dict(vars(result))) if self.return_dict else result


class MPIFunction(ShellFunction):
    """A command line that the endpoint's MPI launcher starts, on the nodes and ranks of the executor's
    `resource_specification`. Needs an endpoint with an engine that runs MPI tasks."""

    def __call__(self, /, **kwargs: Any) -> ShellResult:
        """Run the command through the launcher. In the worker. Raises MpiUnavailable."""
        if not os.environ.get("PARSL_MPI_PREFIX"):
            raise MpiUnavailable
        return self._run(f"$PARSL_MPI_PREFIX {self._filled(kwargs)}")


def _identifier(name: str) -> str:
    import keyword

    if not (isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)):
        raise ValueError(f"name is that of a Python function, such as 'count_lines', not {name!r}")
    return name


def _seconds(walltime: Any) -> float | None:
    if walltime is None:
        return None
    import numbers  # numpy's are Real, too

    if isinstance(walltime, bool) or not isinstance(walltime, numbers.Real):
        raise TypeError(f"walltime is a number of seconds, such as walltime=60, not {walltime!r}")
    if not 0 <= cast("Any", walltime) <= threading.TIMEOUT_MAX:
        accepted = "in seconds, 0 or more, or None for no limit"
        raise ValueError(f"walltime is {accepted}, such as walltime=60, not {walltime!s:.40}")
    return int(walltime) if isinstance(walltime, numbers.Integral) else float(walltime)


def _lines(count: Any) -> int:
    if isinstance(count, bool) or not hasattr(count, "__index__") or (lines := operator.index(count)) < 0:
        raise ValueError(f"snippet_lines is a number of lines, 0 or more, such as snippet_lines=100, not {count!r}")
    return lines


def _file(option: str, name: Any, or_bytes: str = "") -> str | None:
    """Return the name of a file as text. A number would be one of the worker's own descriptors."""
    if name is None:
        return None
    example = f"such as {option}='{option}.txt'"
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"{option} is the name of a file on the endpoint{or_bytes}, {example}, not {name!r}")
    text = os.fsdecode(name)
    if not text or "\0" in text:
        raise ValueError(f"{option} is the name of a file on the endpoint{or_bytes}, {example}, not {name!r}")
    return text


@contextlib.contextmanager
def _script(command: str) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """Yield bash's arguments for a command, and the descriptors that it needs. The kernel takes 128 kB for one
    argument: a longer command is a file in memory."""
    text = os.fsencode(command)
    if len(text) <= _MAX_ARGUMENT_BYTES:
        yield ["-c", command], ()
        return
    descriptor = os.memfd_create("mep-command", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(text)
        file.flush()
        yield [f"/proc/self/fd/{descriptor}"], (descriptor,)


@contextlib.contextmanager
def _input(given: str | bytes | None) -> Iterator[IO[bytes] | int]:
    if given is None:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() if isinstance(given, bytes) else open(given, "rb") as file:
        if isinstance(given, bytes):
            file.write(given)
            file.seek(0)
        yield file


def _output(name: str | None) -> IO[bytes]:
    if name is None:
        return tempfile.TemporaryFile()
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a+b")


class _Followed:
    """A file that a command writes to, whose new end is the task's output while it runs."""

    def __init__(self, stream: int, file: IO[bytes]) -> None:
        self._stream, self._descriptor = stream, file.fileno()
        self._at = os.fstat(self._descriptor).st_size  # what was there before is not the task's

    def read(self) -> None:
        """Take in the part that is new since last time: its end where it is much."""
        size = os.fstat(self._descriptor).st_size
        if size < self._at:  # the command has cut it
            self._at = size
        skipped = max(0, size - self._at - task_output.MOST_BYTES)
        data = os.pread(self._descriptor, task_output.MOST_BYTES, self._at + skipped)
        self._at += skipped + len(data)
        if data:
            task_output.add(self._stream, data, skipped)


def _followed(files: list[IO[bytes]]) -> list[_Followed]:
    """Return what to follow while the command runs: nothing where its person does not want to see it then."""
    if not task_output.is_live():
        return []
    same = os.path.samestat(*(os.fstat(file.fileno()) for file in files))
    return [_Followed(stream, file) for stream, file in enumerate(files[: 1 if same else 2])]


def _ended(process: subprocess.Popen[bytes], walltime: float | None, followed: list[_Followed]) -> int:
    """Return the return code. Raises TimeoutExpired after `walltime` seconds."""
    if not followed:
        return process.wait(walltime)
    ends = math.inf if walltime is None else time.monotonic() + walltime
    while True:
        try:
            return process.wait(max(0.0, min(_FOLLOW_S, ends - time.monotonic())))
        except subprocess.TimeoutExpired:
            if time.monotonic() >= ends:
                raise
        finally:
            for each in followed:
                each.read()


def _wait(
    process: subprocess.Popen[bytes], walltime: float | None, followed: list[_Followed]
) -> tuple[int, str | None]:
    """Return the return code, and the name of the failure."""
    with contextlib.ExitStack() as unless_ended:
        unless_ended.callback(_end, process)  # also where the worker is told to stop: it must not outlive the task
        try:
            returncode = _ended(process, walltime, followed)
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
