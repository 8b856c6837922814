"""The program that a block starts on each of its nodes: finds our packages, forks the fork server, runs the pool.

It runs in the user endpoint's own Python, or from the user endpoint's run directory in whatever Python the block has.
"""

from __future__ import annotations

import os
import sys

_OLDEST = (3, 11)  # worker_staging says so too, in words that an older Python cannot read


def main() -> int:
    """Run this node's pool. Returns the exit status."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no pathlib: the start is measured
    own = (here, os.path.realpath(here))  # by the name of a staged link or of what it leads to
    sys.path[:] = [entry for entry in sys.path if entry not in own]
    os.environ.pop("MEP_PYTHON", None)  # only the block's script needs it
    packages = os.path.dirname(os.path.dirname(os.path.dirname(here)))  # noqa: PTH120 - as above
    if os.path.basename(packages) == "packages" and not _use(packages):  # noqa: PTH119 - as above
        return 1
    from user_endpoint.workers.fork_server import fork_server

    server = fork_server()  # before ZeroMQ is loaded, and before there are threads
    from user_endpoint.engines.htex.worker_pool import run

    return run(sys.argv[1:], server)


def _use(packages: str) -> bool:
    """Use the packages of the run directory. Returns whether this Python can."""
    if sys.version_info[:2] < _OLDEST:
        own = f"{sys.version_info[0]}.{sys.version_info[1]}"
        problem = f"{sys.executable} is Python {own}; tasks need {_OLDEST[0]}.{_OLDEST[1]}"
    else:
        sys.path.insert(0, packages)
        from user_endpoint.worker_staging import use_libraries

        problem = use_libraries(packages, "msgspec", "zmq")
    if problem:
        print(problem, file=sys.stderr)  # noqa: T201 - this is the block's log
    return not problem


if __name__ == "__main__":
    sys.exit(main())
