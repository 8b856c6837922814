"""Start a fork server in another Python, or after the person's own shell commands, and wait until it is ready.

Called by the process engine where its settings ask for that. Everything runs as the person.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile

from user_endpoint.workers import frames
from user_endpoint.workers.forkserver import Server

START_S = 120.0
"""Longest time that worker_init and the start of the other Python may take together."""
_MAX_REASON = 600
_PROGRAM = "user_endpoint/workers/staged.py"
_SCRIPT = """\
{setup}
if [ -z "$MEP_TASK_PYTHON" ]; then MEP_TASK_PYTHON="${{VIRTUAL_ENV:-$CONDA_PREFIX}}"
MEP_TASK_PYTHON="${{MEP_TASK_PYTHON:+$MEP_TASK_PYTHON/bin/python}}"; fi
set -- "${{MEP_TASK_PYTHON:-{own}}}" "$@"
unset MEP_TASK_PYTHON
exec "$@"
"""


def staged_server(python: str, setup: str, packages: str) -> Server:
    """Return a fork server in `python` (or in what `setup` activates, or in this one), which takes our packages from
    `packages`, where runner_files has put them. Raises OSError, saying why."""
    ours, theirs = frames.pair()
    with contextlib.closing(theirs), tempfile.TemporaryFile() as errors:
        descriptor = theirs.fileno()
        arguments = [str(descriptor), str(os.getpid())]
        script = _SCRIPT.format(setup=setup, own=sys.executable)
        process = subprocess.Popen(
            ["/bin/bash", "-c", script, "bash", "-I", f"{packages}/{_PROGRAM}", *arguments],
            env={**os.environ, "MEP_TASK_PYTHON": python},
            stdin=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(descriptor,),
        )
        theirs.close()
        server = Server(ours, process.pid, own_environment=True)
        process.returncode = 0  # the engine waits for it, not this object
        if not _is_ready(server):
            server.stop(0.5)
            errors.seek(0)
            reason = errors.read()[-_MAX_REASON:].decode("utf-8", "replace").strip()
            raise OSError(0, reason or f"worker_init and the start of {python or 'Python'} took over {START_S:.0f} s")
    return server


def _is_ready(server: Server) -> bool:
    if not select.select([server.sock], [], [], START_S)[0]:
        return False
    try:
        return bool(frames.receive(server.sock)[0][0] == "ready")
    except frames.PeerGone:
        return False
