"""Stages our packages where workers in another Python, or on another host, find them.

They are in the user endpoint's run directory, which is the person's own and which blocks must see anyway for their
keys. `runner/packages` holds our packages and nothing else. A task therefore imports nothing of the endpoint's by
accident, and an older mep-sdk in a person's environment does no harm. `runner/libraries-3.11` holds the libraries
that these need, for a Python of that version without mep-sdk[worker]. They are links where workers run on this host,
copies elsewhere. Made at the engine's start and removed at the user endpoint's end. `use_libraries` runs in the
worker; standard library only.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from user_endpoint.run_directory import make_below

_PACKAGES = ("mep_link", "mep_sdk", "mep_wire", "user_endpoint")
_LIBRARIES = ("msgspec", "zmq", "cloudpickle")
_BESIDE = ("pyzmq.libs",)
"""Directories of shared objects that stand beside a library where its wheel brings its own."""
OLDEST = (3, 11)


def stage(run_directory: str, *, copy: bool) -> str:
    """Put everything into the run directory, replacing its contents; return the directory of our packages.

    Raises EngineFailed.
    """
    unstage(run_directory)
    try:
        return _staged(run_directory, copy=copy)
    except OSError as error:
        from mep_wire.errors import EngineFailed  # a worker that has no msgspec yet imports this module too

        reason = f"the workers' files cannot be put into the run directory: {error.strerror}"
        raise EngineFailed(reason=reason, detail=str(error)) from error


def _staged(run_directory: str, *, copy: bool) -> str:
    packages = _runner(run_directory) + "/packages"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    libraries = f"{_runner(run_directory)}/libraries-{version}"
    for made in (packages, libraries):
        make_below(run_directory, made)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - as above
    for name in _PACKAGES:
        _put(f"{ours}/{name}", f"{packages}/{name}", copy=copy)
    for path in _library_paths():
        _put(path, f"{libraries}/{os.path.basename(path)}", copy=copy)  # noqa: PTH119 - as above
    return packages


def unstage(run_directory: str) -> None:
    """Remove the files that `stage` made."""
    shutil.rmtree(_runner(run_directory), ignore_errors=True)


def _runner(run_directory: str) -> str:
    return f"{run_directory}/runner"


def _library_paths() -> list[str]:
    found = []
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            location = spec.submodule_search_locations[0]
            found.append(location)
            beside = [f"{os.path.dirname(location)}/{each}" for each in _BESIDE]  # noqa: PTH120 - as above
            found += [each for each in beside if os.path.isdir(each) and each not in found]  # noqa: PTH112 - as above
    return found


def _put(source: str, target: str, *, copy: bool) -> None:
    if copy:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))  # some of it is root's alone
    else:
        os.symlink(source, target)  # noqa: PTH211 - as above


def use_libraries(packages: str, *needed: str) -> str:
    """Make `needed` importable in this process, from its own Python or from beside `packages`; return any problem."""
    if all(importlib.util.find_spec(name) for name in needed):
        return ""
    top = os.path.dirname(packages)  # noqa: PTH120 - as above
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    staged = [name.partition("-")[2] for name in os.listdir(top) if name.startswith("libraries-")]  # noqa: PTH208 - as above
    if ours in staged:
        sys.path.append(f"{top}/libraries-{ours}")
        return ""
    version = ", ".join(staged) or "unknown"
    return f"{sys.executable} is Python {ours} and the endpoint's is {version}: install mep-sdk[worker] there"
