"""The program that the client starts: serves as interchange for as long as its parent lives."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Read the settings from standard input, serve."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    os.umask(0o077)
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - no pathlib: the start is measured
    sys.path[:] = [entry for entry in sys.path if entry != here]
    from user_endpoint import fast_msgspec_import  # noqa: F401  # before anything imports msgspec
    from user_endpoint.engines.htex.interchange import BatchInterchange
    from user_endpoint.process_exit import name_process

    name_process("mep-interchange")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # each node needs some; no other process inherits it
    config = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent, by a pipe
    BatchInterchange(**config).start()


if __name__ == "__main__":
    main()
