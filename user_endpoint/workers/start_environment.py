"""What a program reads from its environment once, at its start: a process that is forked later goes without it.

The user endpoint runs isolated (python -I): nothing of the person's chooses its modules. For tasks the rule is another,
and the same in all engines: what user_environment.yaml and worker_init set holds, as do packages that were installed
with `pip install --user`. Workers are therefore forked from a fresh Python wherever there is such a thing, which takes
about 60 ms at the start of a user endpoint. Standard library only. Called by the engines.
"""

from __future__ import annotations

import os
import sys

_OF_PYTHON = "PYTHON"
_OF_THE_LOADER = ("LD_", "MALLOC_", "GLIBC_TUNABLES")


def needs_new_process() -> bool:
    """Whether a fresh Python would differ from this one by what it reads at its start."""
    if any(name.startswith(_OF_PYTHON) for name in os.environ) or user_site():
        return True
    changed = [name for name in os.environ if name.startswith(_OF_THE_LOADER)]
    if not changed:
        return False
    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:
            started_with = file.read().split(b"\0")
    except OSError:
        return True
    return any(os.fsencode(f"{name}={os.environ[name]}") not in started_with for name in changed)


def user_site() -> str:
    """Return the directory of packages that the person has installed for this Python alone; empty without any."""
    if sys.prefix != sys.base_prefix or "PYTHONNOUSERSITE" in os.environ:
        return ""
    base = os.environ.get("PYTHONUSERBASE") or os.path.expanduser("~/.local")  # noqa: PTH111 - no pathlib here
    found = f"{base}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    return found if os.path.isdir(found) else ""  # noqa: PTH112 - as above


def use_own_commands() -> None:
    """Let tasks find the commands of this Python's packages by name, as Parsl finds its interchange in a task that is a
    whole workflow. They come first on PATH, unless a place on it is theirs already."""
    own = os.path.dirname(sys.executable)  # noqa: PTH120 - no pathlib here
    before = os.environ.get("PATH", os.defpath)
    if own and own not in before.split(os.pathsep):
        os.environ["PATH"] = f"{own}{os.pathsep}{before}"


def use_own_paths() -> None:
    """Put the person's own directories on sys.path, for tasks that run in the user endpoint's own process."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [each for each in given if each and each not in sys.path]
    own = user_site()
    if own and own not in sys.path:
        import site

        site.addsitedir(own)
