"""Start a fork server in another Python, or after the person's own shell commands.

Called by the process engine where its settings ask for that. Everything runs as the person.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile

from user_endpoint.workers import datagrams
from user_endpoint.workers.fork_server import Server

_PROGRAM = "user_endpoint/workers/external_server.py"
_SCRIPT = """\
{setup}
if [ -z "$MEP_TASK_PYTHON" ]; then MEP_TASK_PYTHON="${{VIRTUAL_ENV:-$CONDA_PREFIX}}"
MEP_TASK_PYTHON="${{MEP_TASK_PYTHON:+$MEP_TASK_PYTHON/bin/python}}"; fi
set -- "${{MEP_TASK_PYTHON:-{own}}}" "$@"
unset MEP_TASK_PYTHON
exec "$@"
"""


def staged_server(python: str, setup: str, packages: str) -> Server:
    """Start a fork server in `python` (or in the Python that `setup` activates, or in this one).

    It imports our packages from `packages`, where worker_staging has put them, and reports when it is ready. Raises
    OSError if it can't be run.
    """
    ours, theirs = datagrams.pair()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the server's, which closes it
    with contextlib.closing(theirs):
        descriptor = theirs.fileno()
        arguments = [str(descriptor), str(os.getpid())]
        script = _SCRIPT.format(setup=setup, own=sys.executable)
        try:
            process = subprocess.Popen(
                ["/bin/bash", "-c", script, "bash", "-I", f"{packages}/{_PROGRAM}", *arguments],
                env={**os.environ, "MEP_TASK_PYTHON": python},
                stdin=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(descriptor,),
            )
        except OSError:
            ours.close()
            errors.close()
            raise
    process.returncode = 0  # the engine waits for it, not this object
    return Server(ours, process.pid, errors)
