"""The fork server as a program: in the user endpoint's own Python, or one in which nothing of MEP need be installed.

In the latter our packages are imported from this file's directory (see worker_staging). Their dependencies come from
that Python or, if both are of one version, from the user endpoint's own; else the person is told which packages to
install. Standard library only until the dependencies are found.
"""

from __future__ import annotations

import os
import sys

_OLDEST = (3, 11)  # runner_files says so too, in words that an older Python cannot read


def _use(packages: str) -> str:
    """Make our packages importable; return any problem. Where they are installed, there is nothing to do."""
    if os.path.basename(packages) != "packages":  # noqa: PTH119 - as above
        import user_endpoint.fast_msgspec_import  # noqa: F401  # before anything imports msgspec

        return ""
    sys.path.insert(0, packages)
    from user_endpoint.worker_staging import use_libraries

    return use_libraries(packages, "msgspec")


def main(arguments: list[str]) -> int:
    """Serve on the given descriptor. Arguments: descriptor, parent's pid."""
    descriptor, parent = arguments
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info[:2] < _OLDEST:
        print(f"{sys.executable} is Python {ours}; tasks need {_OLDEST[0]}.{_OLDEST[1]}", file=sys.stderr)  # noqa: T201 - read by staged_server
        return 1
    here = os.path.abspath(__file__)  # noqa: PTH100 - no pathlib: the start is measured
    directory = os.path.dirname(here)  # noqa: PTH120 - as above
    packages = os.path.dirname(os.path.dirname(directory))  # noqa: PTH120 - as above
    own = (directory, os.path.realpath(directory))  # by the name of a staged link or of what it leads to
    sys.path[:] = [entry for entry in sys.path if entry not in own]
    if problem := _use(packages):
        print(problem, file=sys.stderr)  # noqa: T201 - as above
        return 1
    import _socket

    from user_endpoint.workers import datagrams
    from user_endpoint.workers.fork_server import serve_forks

    control = _socket.socket(fileno=int(descriptor))
    datagrams.send(control, ("ready", ".".join(map(str, sys.version_info[:3]))))
    return serve_forks(control, int(parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
