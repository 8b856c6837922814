"""endpoint_setup and endpoint_teardown: the template's shell commands before the engine starts and after it stops.

They come from the administrator's template (values in them from a person are quoted there), and run as the
user, in the run directory, their output going to the log. Called by starting.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

from user_endpoint.keeper_report import StartFailure
from user_endpoint.shortage import killed

SETUP_SHARE: Final = 0.75
"""The part of `caps.start_timeout_s` that endpoint_setup may take."""
TEARDOWN_S: Final = 5.0


def setup_limit_s(parent_config: Mapping[str, Any]) -> float:
    """Return how many seconds endpoint_setup may take. Beyond, it is ended before the start itself, and named."""
    return SETUP_SHARE * float(parent_config.get("caps", {}).get("start_timeout_s", 60.0))


def run_commands(key: str, commands: str | None, directory: str, limit_s: float) -> None:
    """Run `commands` by /bin/sh and wait. Raises StartFailure where they fail or take too long."""
    if not commands:
        return
    shell = ["/bin/sh", "-c", f'cd "$0" || exit; {commands}', directory]
    pid = os.posix_spawn(shell[0], shell, dict(os.environ), setsid=True)
    deadline = time.monotonic() + limit_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            remedy = "; caps.start_timeout_s in config.yaml gives it more" if key == "endpoint_setup" else ""
            raise _failure(key, f"took over {limit_s:g} s", remedy)
        time.sleep(0.005)
    if failure := killed(f"a command of {key}", status):
        raise failure
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise _failure(key, f"ended with status {code}")


def _failure(key: str, what: str, remedy: str = "") -> StartFailure:
    # Either side may be at fault: a template may take the commands from the person, as the one that
    # `mep configure` writes does. The commands themselves are not quoted.
    public = (
        f"The commands of {key} {what}. They are the template's, with what your user_endpoint_config gives to it; "
        "their output is at the site, in ~/.mep/uep/*/endpoint.log."
    )
    return StartFailure(
        "ENDPOINT_MISCONFIGURED", public, f"{key}: {what}; its output is in the person's endpoint.log{remedy}"
    )
