#!/usr/bin/env python3
"""Writes packaging/lock/*.txt: every distribution that the installer may install, by version and by hash of its wheels.

Run as `make lock` after a change to constraints.txt or to the requirements in pyproject.toml, read the difference, and
commit it. Versions are those of constraints.txt. pip decides what a group needs, on the running Python: run this with
the oldest supported one; newer ones need no further packages. pip is then asked which wheel it would install for each
Python, architecture and libc. A distribution without a wheel for one of them is an error, since nothing is built at a
site. pip's default index is asked, and none of this account's configuration. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "packaging" / "constraints.txt"
LOCK = ROOT / "packaging" / "lock"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ARCHITECTURES = ("x86_64", "aarch64")
GLIBC_MINORS = (28, 31, 34, 36, 39, 41)
"""Debian 11 to 13, RHEL 8 to 10, Ubuntu 20.04 to 25.04: pip prefers the wheel for the newest one that fits."""
AT_ONCE = 6
HEAD = "# Written by packaging/lock.py (make lock) from constraints.txt and pyproject.toml.\n"


def normal(name: str) -> str:
    """Return a distribution's name as the packaging specifications normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def groups() -> dict[str, list[str]]:
    """Return the requirements of each lock file. `run` is the service; the other files leave its requirements out."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    return {
        "run": project["dependencies"],
        "kubernetes": project["optional-dependencies"]["kubernetes"],
        "postgresql": project["optional-dependencies"]["postgresql"],
        "s3": project["optional-dependencies"]["s3"],
        "tools": project["optional-dependencies"]["dev"],
        "science": project["optional-dependencies"]["science"],
        "packages": project["optional-dependencies"]["packages"],
        "build": [*document["build-system"]["requires"], "pip"],
    }


class Wheel(NamedTuple):
    """One wheel that pip would install."""

    version: str
    digest: str
    pure: bool
    """Whether this wheel fits every Python and machine."""


class Pip:
    """The pip that constraints.txt names, in an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        venv.create(directory / "env", with_pip=True)
        self._python = directory / "env" / "bin" / "python"
        self._run("install", "-q", "-c", str(CONSTRAINTS), "pip")

    def _run(self, *words: str) -> None:
        subprocess.run([self._python, "-I", "-m", "pip", "--isolated", *words], stdin=subprocess.DEVNULL, check=True)

    def would_install(self, requirements: Iterable[str], *options: str) -> dict[str, Wheel]:
        """Return the wheels that pip would install, by normal name. Raises CalledProcessError."""
        with tempfile.NamedTemporaryFile(dir=self._directory) as report:
            words = [
                "install",
                "-q",
                "--dry-run",
                "--ignore-installed",
                "--only-binary",
                ":all:",
                "--report",
                report.name,
            ]
            self._run(*words, "-c", str(CONSTRAINTS), *options, *requirements)
            installed = json.loads(Path(report.name).read_text())["install"]
        return {
            normal(item["metadata"]["name"]): Wheel(
                item["metadata"]["version"],
                item["download_info"]["archive_info"]["hashes"]["sha256"],
                item["download_info"]["url"].endswith("-none-any.whl"),
            )
            for item in installed
        }


def platforms(machine: str, minor: int) -> list[str]:
    """Return pip's options for wheels that run with glibc 2.`minor`."""
    # pip takes the first that fits, and knows the older names of 2.17 by itself
    named = [f"--platform=manylinux_2_{each}_{machine}" for each in range(minor, 16, -1)]
    return [*named, f"--platform=manylinux2014_{machine}"]


def targets() -> list[list[str]]:
    """Return pip's options for each Python, architecture and libc."""
    found = []
    for python in PYTHONS:
        for machine in ARCHITECTURES:
            for minor in GLIBC_MINORS:
                words = ["--no-deps", "--target", "/nonexistent", f"--python-version={python}"]
                found.append([*words, *platforms(machine, minor)])
    return found


def write(group: str, versions: dict[str, str], hashes: dict[str, set[str]]) -> None:
    """Write one lock file."""
    lines = [
        f"{name}=={versions[name]}" + "".join(f" \\\n    --hash=sha256:{each}" for each in sorted(hashes[name]))
        for name in sorted(versions)
    ]
    (LOCK / f"{group}.txt").write_text(HEAD + "\n".join(lines) + "\n")


def main() -> int:
    """Write every lock file."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    LOCK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mep-lock-") as name:
        pip = Pip(Path(name))
        needed = {group: pip.would_install(wanted) for group, wanted in groups().items()}
        wheels = {name: wheel for found in needed.values() for name, wheel in found.items()}
        hashes = {name: {wheel.digest} for name, wheel in wheels.items()}
        exact = [f"{name}=={wheel.version}" for name, wheel in wheels.items() if not wheel.pure]
        with ThreadPoolExecutor(AT_ONCE) as threads:  # nearly all of the time is the index's
            for found in threads.map(lambda options: pip.would_install(exact, *options), targets()):
                for name, wheel in found.items():
                    hashes[name].add(wheel.digest)
    for group, found in needed.items():
        left_out = needed["run"] if group not in ("run", "build") else {}
        write(group, {name: wheel.version for name, wheel in found.items() if name not in left_out}, hashes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
