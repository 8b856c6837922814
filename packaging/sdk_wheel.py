#!/usr/bin/env python3
"""Builds the slim wheel mep-sdk: the packages that a researcher's script needs, without the site's service.

With --drop-in it builds the wheel mep-globus-compute: the module globus_compute_sdk, over mep-sdk of the same version.

It holds mep_sdk, mep_wire, and of mep_link the pauses. The extra `worker` adds the packages that workers need if blocks
run in a person's own environment. The extra `socks` adds the packages for a SOCKS proxy to the relay. Lower bounds are
those of the project's own pyproject.toml. A package with tested threads also has an upper bound, the newest release
that passed. `PREFIX-build/bin/python packaging/sdk_wheel.py --out dist` runs it with the pinned pip and setuptools.
"""

from __future__ import annotations

import argparse
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mep_link", "mep_sdk", "mep_wire")
SUBPACKAGES = ("mep_sdk.tool",)
DROP_IN = ROOT / "packaging" / "drop_in"
LEFT_OUT = {"mep_link": ("client.py", "zap.py")}
"""Modules that need ZeroMQ, which a script does without."""
SDK = ("cloudpickle", "msgspec", "urllib3", "websockets")
WORKER = ("pyzmq",)
SOCKS = ("pysocks", "python-socks")
OLDEST = "3.10"
"""The oldest Python of people's scripts. The service, and its workers, need a newer one."""
BACKPORTS = ('exceptiongroup>=1.2; python_version < "3.11"', 'tomli>=2; python_version < "3.11"')
"""Parts of the standard library that the oldest Python lacks."""
RACE_TESTED = {"msgspec": ("0.20.0", "0.21.0", "0.21.1", "0.22.0", "0.23.0")}
"""Releases under which tests/unit/wire/test_decoder_races.py passed, oldest first. Those before 0.23 build a type's
decoder without a lock, and a later one may do so again."""
_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def requirement(name: str, known: list[str]) -> str:
    """Return the project's own requirement of this name. Raises LookupError."""
    for each in known:
        if (found := _NAME.match(each)) and found.group().lower() == name:
            return each
    raise LookupError(f"pyproject.toml does not require {name}")


def bounded(name: str, known: list[str]) -> str:
    """Return the wheel's requirement of this name. Raises LookupError."""
    tested = RACE_TESTED.get(name)
    return f"{name}>={tested[0]},<={tested[-1]}" if tested else requirement(name, known)


def pyproject() -> str:
    """Return the wheel's own pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known: list[str] = project["dependencies"]
    socks: list[str] = project["optional-dependencies"]["socks"]
    return f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "mep-sdk"
version = "{project["version"]}"
description = "Run functions, commands and MPI programs on the machines of sites that run MEP endpoints"
readme = "mep_sdk/README.md"
license = "{project["license"]}"
license-files = ["LICENSE"]
classifiers = ["Typing :: Typed", "Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3"]
requires-python = ">={OLDEST}"
dependencies = {[*(bounded(name, known) for name in SDK), *BACKPORTS]}

[project.optional-dependencies]
worker = {[bounded(name, known) for name in WORKER]}
socks = {[bounded(name, socks) for name in SOCKS]}

[project.scripts]
mep-sdk = "{project["scripts"]["mep-sdk"]}"

[tool.setuptools]
packages = {[*PACKAGES, *SUBPACKAGES]}
package-data = {{"*" = ["py.typed"]}}
"""


def lay_out(source: Path) -> None:
    """Write the source tree of the wheel into the directory `source`."""
    for package in PACKAGES:
        left_out = shutil.ignore_patterns("__pycache__", *LEFT_OUT.get(package, ()))
        shutil.copytree(ROOT / package, source / package, ignore=left_out)
    (source / "pyproject.toml").write_text(pyproject())
    shutil.copy(ROOT / "LICENSE", source)
    set_modes(source)


def set_modes(source: Path) -> None:
    """Give everything below `source` the modes of a package, whatever the umask of the checkout was."""
    for path in source.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def drop_in_pyproject() -> str:
    """Return the pyproject.toml of the module globus_compute_sdk."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "mep-globus-compute"
version = "{project["version"]}"
description = "The module globus_compute_sdk for sites that run MEP endpoints: scripts run unchanged"
readme = "README.md"
license = "{project["license"]}"
license-files = ["LICENSE"]
classifiers = ["Typing :: Typed", "Operating System :: POSIX :: Linux", "Programming Language :: Python :: 3"]
requires-python = ">={OLDEST}"
dependencies = ["mep-sdk=={project["version"]}"]

[tool.setuptools.packages.find]
include = ["globus_compute_sdk*"]

[tool.setuptools.package-data]
"*" = ["py.typed"]
"""


def build_drop_in(out: Path) -> Path:
    """Build the wheel mep-globus-compute into `out`; return its path. Raises subprocess.CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="mep-globus-compute-") as name:
        source = Path(name)
        shutil.copytree(DROP_IN, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (source / "pyproject.toml").write_text(drop_in_pyproject())
        shutil.copy(ROOT / "LICENSE", source)
        set_modes(source)
        return _built(source, out)


def build(out: Path) -> Path:
    """Build the wheel mep-sdk into `out`; return its path. Raises subprocess.CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="mep-sdk-") as name:
        source = Path(name)
        lay_out(source)
        return _built(source, out)


def _built(source: Path, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mep-wheel-", dir=out) as made:
        words = ["wheel", "-q", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-I", "-m", "pip", *words, "-w", made, str(source)], check=True)
        (wheel,) = Path(made).glob("*.whl")
        return wheel.replace(out / wheel.name)


def build_sdist(out: Path) -> Path:
    """Build the source distribution into `out`, reproducibly; return its path. Raises CalledProcessError."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mep-sdk-") as name:
        source, made = Path(name, "source"), Path(name, "made")
        source.mkdir()
        lay_out(source)
        code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
        subprocess.run([sys.executable, "-I", "-c", code, str(made)], cwd=source, check=True, stdout=subprocess.DEVNULL)
        archive = next(made.glob("*.tar.gz"))
        return pack_again(archive, out / archive.name, int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))


def pack_again(archive: Path, target: Path, epoch: int) -> Path:
    """Write a .tar.gz with the same files, sorted, all of one time and of root; return `target`."""
    with (
        tarfile.open(archive) as made,
        target.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=epoch) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for entry in sorted(made.getmembers(), key=lambda entry: entry.name):
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = epoch, 0, 0, "root", "root"
            entry.pax_headers = {}
            tar.addfile(entry, made.extractfile(entry) if entry.isfile() else None)
    return target


def main() -> int:
    """Build the wheel and print its path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheel goes")
    parser.add_argument("--sdist", action="store_true", help="build the source distribution too")
    parser.add_argument("--drop-in", action="store_true", help="build mep-globus-compute in place of mep-sdk")
    options = parser.parse_args()
    print(build_drop_in(options.out) if options.drop_in else build(options.out))
    if options.sdist:
        print(build_sdist(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
