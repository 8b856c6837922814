"""The fork server in a Python of the person's own, in which nothing of MEP need be installed.

Our packages are imported from this file's directory (see worker_staging). Their dependencies come from that Python
or, if both are of one version, from the user endpoint's own; else the person is told which packages to install. Run
as a program; standard library only until the dependencies are found.
"""

from __future__ import annotations

import os
import sys

_OLDEST = (3, 11)  # runner_files says so too, in words that an older Python cannot read


def main(arguments: list[str]) -> int:
    """Serve on the given descriptor. Arguments: descriptor, parent's pid."""
    descriptor, parent = arguments
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info[:2] < _OLDEST:
        print(f"{sys.executable} is Python {ours}; tasks need {_OLDEST[0]}.{_OLDEST[1]}", file=sys.stderr)  # noqa: T201 - read by staged_server
        return 1
    here = os.path.abspath(__file__)  # noqa: PTH100 - no pathlib: the start is measured
    packages = os.path.dirname(os.path.dirname(os.path.dirname(here)))  # noqa: PTH120 - as above
    sys.path.insert(0, packages)
    from user_endpoint.worker_staging import use_libraries

    if problem := use_libraries(packages, "msgspec"):
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
