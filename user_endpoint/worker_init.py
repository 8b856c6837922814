"""What is put around a worker_init, so that its failure is told in words: in the standard error of its shell.

An error of a block or of a process that starts workers shows the end of that. Without these lines a bare `exit 3` would
look like a process that was killed, and an environment that is not there like a task's own mistake.
"""

from __future__ import annotations

import re
from typing import Final

_BEFORE: Final = """\
trap 'echo "worker_init: exit status $?" >&2' EXIT
"""
_AFTER: Final = """
MEP_STATUS=$?
case "$(trap -p EXIT)" in *"worker_init: exit status"*) trap - EXIT ;; esac
"""
"""A trap that the person has set stays."""
_ACTIVATED: Final = """\
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && { [ "$MEP_STATUS" != 0 ] || [ -s /proc/self/fd/2 ]; }; then
  echo "worker_init: exit status $MEP_STATUS, and it activated no environment" >&2
  exit 1
fi
"""
"""Standard error is empty where an environment is activated under a condition that does not hold."""
_END: Final = "unset MEP_STATUS\n"
_PYTHON_MISSING: Final = """\
if [ -n "{variable}" ] && [ "{variable}" = "${{VIRTUAL_ENV:-${{CONDA_PREFIX:-}}}}/bin/python" ] \
&& [ ! -x "{variable}" ]; then
  echo "worker_init: it activated an environment without a Python: {variable}" >&2
  exit 127
fi
"""


def told(setup: str) -> str:
    """Return shell commands with those around them that tell of a failure; empty for none."""
    if not setup.strip():
        return ""
    activates = _ACTIVATED if re.search(r"\bactivate\b", setup) else ""
    return f"{_BEFORE}{setup}\n{_AFTER}{activates}{_END}"


def python_missing(variable: str) -> str:
    """Return commands that tell if the Python in a shell variable belongs to an environment that has none."""
    return _PYTHON_MISSING.format(variable=f"${variable}")
