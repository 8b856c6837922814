"""The packages, built once for all workers of a test run.

The wheelhouse stays beside the machines' images for the next run. The builds have no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.harness import CACHE

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(sys.prefix)
BUILD = PREFIX.with_name(f"{PREFIX.name}-build")
RUNNING = "{}.{}".format(*sys.version_info)
"""The version of Python that runs the tests, and that the packages are for unless a test asks for another."""
_LIMIT_S = 900


def build(work: Path, out: Path, *words: str, offline: bool = True) -> None:
    """Run packaging/packages.py, if `offline` in a network namespace without any interface."""
    argv = [str(BUILD / "bin/python"), str(ROOT / "packaging/packages.py"), "--build", str(BUILD)]
    argv += ["--work", str(work), "--out", str(out), *words]
    done = subprocess.run(
        [*(["unshare", "--net"] if offline else []), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=_LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def wheelhouse(*pythons: str) -> Path:
    """Return the work directory with the downloaded wheels for these versions of Python."""
    work = CACHE / "packages"
    work.mkdir(parents=True, exist_ok=True)
    with _locked(work / "lock"):
        build(work, work / "unused", "--wheelhouse-only", "--python", *pythons, offline=False)
    return work


def built(factory: pytest.TempPathFactory, *, release: str = "1", python: str = RUNNING) -> Path:
    """Return a directory with the packages, which the first test that asks for them builds. Do not write to it."""
    base = factory.getbasetemp()
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"packages-{release}-{python}"
    with _locked(out.with_name(f"{out.name}.lock")):
        if not (out / "SHA256SUMS").exists():
            build(wheelhouse(python), out, "--release", release, "--python", python)
    return out


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
