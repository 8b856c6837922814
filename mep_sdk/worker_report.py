"""A worker's Python and its packages. `worker_report` runs in the worker, with the standard library alone."""

from __future__ import annotations

from typing import Any


def worker_report() -> dict[str, Any]:
    """Return the Python that runs tasks, where it is, and the name and version of each installed package."""
    import importlib.metadata
    import platform
    import sys

    packages: dict[str, str] = {}
    for each in importlib.metadata.distributions():
        try:
            name, version = each.metadata["Name"], each.version
        except Exception:  # noqa: BLE001, S112 - a damaged installation: the others are still of use
            continue
        if name and version:
            packages.setdefault(str(name), str(version))  # the first on the path is the one that is imported
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "system": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
