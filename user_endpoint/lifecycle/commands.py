"""endpoint_setup and endpoint_teardown: the template's shell commands before the engine starts and after it stops.

They come from the administrator's template (values in them from a person are quoted there), and run as the
user, in the run directory, their output going to the log. Called by starting.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

from mep_wire.errors import EndpointMisconfigured

SETUP_S: Final = 45.0
TEARDOWN_S: Final = 5.0


def run_commands(key: str, commands: str | None, directory: str, limit_s: float) -> None:
    """Run `commands` by /bin/sh and wait. Raises EndpointMisconfigured where they fail or take too long."""
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
            raise EndpointMisconfigured(detail=f"{key}: took over {limit_s:g} s")
        time.sleep(0.005)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise EndpointMisconfigured(detail=f"{key}: ended with status {code}; its output is in endpoint.log")
