"""Run commands of the installed project: short ones to their end, services in the background."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sitekit.accounts import Account
from sitekit.errors import SiteError
from sitekit.ledger import Ledger

BIN = Path(sys.prefix, "bin")
_T = TypeVar("_T")


def stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP end this run as Ctrl-C does: by KeyboardInterrupt, so that it clears up."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)


def environment(extra: Mapping[str, str], run_as: Account | None = None) -> dict[str, str]:
    """Return a small environment: the variables that commands need, and none of the caller's that could affect them."""
    who = {"HOME": str(run_as.home), "USER": run_as.name} if run_as else {"HOME": str(Path("~").expanduser())}
    return {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", **who, **extra}


def _identity(run_as: Account | None) -> dict[str, Any]:
    if run_as is None or run_as.uid == os.geteuid():
        return {}
    return {"user": run_as.uid, "group": run_as.gid, "extra_groups": run_as.groups}


def command(
    *argv: str | Path,
    env: Mapping[str, str],
    run_as: Account | None = None,
    text: str | None = None,
    timeout_s: float = 60,
) -> str:
    """Run a command to its end and return its output. Raises SiteError with the command's output if it fails."""
    done = attempt(*argv, env=env, run_as=run_as, text=text, timeout_s=timeout_s)
    if done.returncode:
        raise SiteError(f"{' '.join(map(str, argv))} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def attempt(
    *argv: str | Path,
    env: Mapping[str, str],
    run_as: Account | None = None,
    text: str | None = None,
    timeout_s: float = 60,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with any exit status."""
    return subprocess.run(
        [str(word) for word in argv],
        env=environment(env, run_as),
        input=text if text is not None else "",
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        cwd="/",
        **_identity(run_as),
    )


class Daemon:
    """A service in the background, with its output in a log file."""

    def __init__(
        self, *argv: str | Path, env: Mapping[str, str], log: Path, ledger: Ledger, run_as: Account | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [str(word) for word in argv],
                env=environment(env, run_as),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
                **_identity(run_as),
            )
        ledger.process(self._process.pid)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_s: float = 30) -> int:
        """End it with SIGTERM; with SIGKILL if it does not end in time. Returns its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise SiteError(f"did not end within {timeout_s} s:\n{tail(self.log)}") from None

    def wait_for(self, what: str, ready: Callable[[], _T | None], timeout_s: float = 20) -> _T:
        """Return the first value of `ready` that isn't None. Raises SiteError if the service ends or the time is up."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := ready()) is not None:
                return found
            if not self.is_running():
                raise SiteError(f"ended before {what}:\n{tail(self.log)}")
            time.sleep(0.005)
        raise SiteError(f"no {what} within {timeout_s} s:\n{tail(self.log)}")


def tail(log: Path, lines: int = 30) -> str:
    """Return the end of a log file."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"
