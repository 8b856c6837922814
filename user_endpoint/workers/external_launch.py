"""Start a fork server in another Python, or after the person's own shell commands.

Called by the process engine where its settings ask for that. Everything runs as the person.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile

from user_endpoint import inherited_state
from user_endpoint.worker_init import python_missing, told
from user_endpoint.workers import datagrams
from user_endpoint.workers.fork_server import ServerHandle

_PROGRAM = "user_endpoint/workers/external_server.py"
_MISSING = python_missing("MEP_TASK_PYTHON")
_SCRIPT = """\
{before}
{setup}
MEP_TASK_PYTHON="${{MEP_TASK_PYTHON:-${{VIRTUAL_ENV:-${{CONDA_PREFIX:-}}}}/bin/python}}"
if [ "$MEP_TASK_PYTHON" = /bin/python ]; then MEP_TASK_PYTHON={own}; fi
{missing}set -- "$MEP_TASK_PYTHON" {server}
unset MEP_TASK_PYTHON
exec "$@"
"""
"""An empty line in `setup` ends a line of the person's that continues. They may have set -u, -e, IFS or arguments."""


def staged_server(python: str, setup: str, packages: str) -> ServerHandle:
    """Start a fork server in `python` (or in the Python that `setup` activates, or in this one).

    It imports our packages from `packages`, where worker_staging has put them, and reports when it is ready. Raises
    OSError if it can't be run.
    """
    ours, theirs = datagrams.pair()
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the server's, which closes it
    with contextlib.closing(theirs):
        descriptor = theirs.fileno()
        server = shlex.join([f"{packages}/{_PROGRAM}", str(descriptor), str(os.getpid())])
        own, before = shlex.quote(sys.executable), inherited_state.as_shell()
        script = _SCRIPT.format(before=before, setup=told(setup), own=own, server=server, missing=_MISSING)
        try:
            process = subprocess.Popen(
                ["/bin/bash", "-c", script, "bash"],
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
    return ServerHandle(ours, process.pid, errors, own_environment=True)
