"""The fork server in a Python of the person's own, in which nothing of MEP need be installed.

Our packages are taken from where this file is. What they need beyond the standard library is taken from that
Python or, where both are of one version, from the user endpoint's own; else the person is told what to install.
Run as a program by exec_server; standard library only until it knows that it can go on.
"""

from __future__ import annotations

import os
import sys

_OLDEST = (3, 11)


def main(arguments: list[str]) -> int:
    """Serve on the given descriptor. Arguments: descriptor, parent's pid, its Python's version, its packages."""
    descriptor, parent, version, packages = arguments
    here = os.path.abspath(__file__)  # noqa: PTH100 - no pathlib: the start is measured
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))  # noqa: PTH120 - as above
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if sys.version_info[:2] < _OLDEST:
        print(f"{sys.executable} is Python {ours}; tasks need {_OLDEST[0]}.{_OLDEST[1]}", file=sys.stderr)  # noqa: T201 - read by exec_server
        return 1
    try:
        import msgspec  # noqa: F401 - whether it is there
    except ImportError:
        if ours != version:
            text = f"{sys.executable} is Python {ours} and the endpoint's is {version}: install mep-sdk[worker] there"
            print(text, file=sys.stderr)  # noqa: T201 - as above
            return 1
        sys.path.append(packages)
    import _socket

    from user_endpoint.workers import frames
    from user_endpoint.workers.forkserver import serve_forks

    control = _socket.socket(fileno=int(descriptor))
    frames.send(control, ("ready", ours))
    return serve_forks(control, int(parent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
