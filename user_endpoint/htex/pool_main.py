"""The program that a block starts on each of its nodes: finds our packages, forks the fork server, runs the pool."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run this node's pool. Returns the exit status."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no pathlib: the start is measured
    sys.path[:] = [entry for entry in sys.path if entry != here]
    try:
        import mep_sdk.runner
    except ImportError:  # another Python than the user endpoint's, on a file system that both share
        sys.path.append(os.path.dirname(os.path.dirname(here)))  # noqa: PTH120 - as above
        import mep_sdk.runner
    assert mep_sdk.runner, "loaded once, here, for every worker"
    from user_endpoint.workers.forkserver import fork_server

    server = fork_server()  # before ZeroMQ is loaded, and before there are threads
    from user_endpoint.htex.pool import run

    return run(sys.argv[1:], server)


if __name__ == "__main__":
    sys.exit(main())
