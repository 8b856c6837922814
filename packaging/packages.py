#!/usr/bin/env python3
"""Builds the packages: mep-common, mep-endpoint, mep-relay and mep-sdk as .deb and .rpm, and the wheels and the sdist.

`make packages` runs it, in two steps. The first downloads every wheel that is needed into a wheelhouse, each by its
SHA-256 in lock/. The second builds without a network. It depends on the sources, the locks, the Python and
SOURCE_DATE_EPOCH (absent: the time of the last commit) and on nothing else, so the same inputs give the same bytes.

The packages are for one minor version of Python, that of the system they will be installed on: they bring compiled
modules. `make packages PYTHON=3.13` builds for another version than the running one, and `PYTHON=all` for each. No
interpreter of that version is needed. Byte code that needs one is written when the package is installed.

/opt/mep/packaged is an environment of the service alone. It is written for the path that scripts/release copies it to.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import hashlib
import os
import shutil
import stat
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bill_of_materials
import install
import lock
import sdk_wheel

ROOT = install.ROOT
SCRIPTS = ROOT / "packaging" / "scripts"
NO_GIT_EPOCH = 1767225600
"""SOURCE_DATE_EPOCH of a tree without git: 2026-01-01."""
PACKAGE_OF = {"mep-relay": "mep-relay", "mep-sdk": "mep-sdk"}
"""The package that puts a command on PATH, for each that mep-endpoint does not."""
HOME_OF = {"mep-sdk": "/opt/mep-sdk"}
"""The environment of a package's commands, unless it is /opt/mep."""
SDK = (*sdk_wheel.SDK, "mep-sdk")
INSTALLER_FILES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""pip's own records: they name build paths, and no pip works on these environments."""
EXTRAS_DIRECTORY, EXTRAS_PATH = "/opt/mep/extras", "mep-extras.pth"
"""Where the packages of extras put libraries, and the file that makes Python look there (missing ones are no error)."""
FIRST_LINE = "#!python"
"""Stands in a command until its interpreter's path is known."""
ONE = {"preinstall": "install", "postinstall": "install", "preremove": "upgrade", "postremove": "upgrade"}
"""What rpm's argument 1 means to each script."""
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}


OLDEST_GLIBC_MINOR = 34
"""Wheels are chosen for this glibc, whichever the building system has: RHEL 9's, older than those of Debian 12 and 13,
RHEL 10 and Ubuntu 24.04."""


class Target(NamedTuple):
    """What the packages are built for."""

    version: str
    """Version of Python, major and minor."""

    @property
    def python(self) -> Path:
        """The system's interpreter, by its versioned name."""
        return Path(f"/usr/bin/python{self.version}")

    @property
    def tag(self) -> str:
        """The short name that goes into a package's release."""
        return "py" + self.version.replace(".", "")

    @property
    def site(self) -> str:
        """Where an environment has its packages, from its top."""
        return f"lib/python{self.version}/site-packages"


class Build:
    """One build: its directories, its target, and the pip that works for it."""

    def __init__(self, work: Path, out: Path, build_environment: Path, number: str, python: str = "") -> None:
        """`python` is the version that the packages are for; empty: the running one."""
        self.work, self.out, self.epoch = work, out, source_date()
        self.wheelhouse = work / "wheelhouse"
        self.pip_python = build_environment / "bin" / "python"
        self.running = running_version(self.pip_python)
        self.target = Target(python or self.running)
        self.version = str(install.project()["version"])
        self.release = f"{number}.{self.target.tag}"

    @property
    def has_interpreter(self) -> bool:
        """Whether the running Python is of the version that the packages are for."""
        return self.target.version == self.running

    def pip(self, *words: str | Path) -> None:
        """Run pip without configuration of this account's. Raises CannotInstall."""
        install.run(self.pip_python, "-I", "-m", "pip", "--disable-pip-version-check", *words)

    def install_offline(self, where: Path, *words: str | Path, version: str = "") -> None:
        """Install from the wheelhouse into the directory `where`, for the target or another version of Python."""
        version = version or self.target.version
        offline: list[str | Path] = ["--no-index", "--no-deps", "--no-compile", "--only-binary", ":all:"]
        self.pip(
            "install", "-q", *offline, *platform(version), "-f", self.wheelhouse / version, "--target", where, *words
        )


def running_version(python: Path) -> str:
    """Return major and minor version of an interpreter. Raises CannotInstall."""
    found = install.probe(str(python))
    if found is None:
        raise install.CannotInstall(f"{python} does not run: run `make tools` first")
    return "{}.{}".format(*found[0])


def platform(version: str) -> list[str]:
    """Return pip's options for wheels of this version of Python, on this machine's architecture."""
    return [f"--python-version={version}", *lock.platforms(os.uname().machine, OLDEST_GLIBC_MINOR)]


# --- first step: the wheelhouse ---------------------------------------------------------------------------


def locked(group: str) -> Path:
    """Return the path of a lock file."""
    return install.LOCKS / f"{group}.txt"


def fill_wheelhouse(build: Build) -> None:
    """Download the locked wheels, unless they are there. The only step that needs a network."""
    for version in sorted({build.target.version, build.running}):
        fill_for(build, version)


def fill_for(build: Build, version: str) -> None:
    """Download the locked wheels for one version of Python, unless they are there."""
    place, locks = build.wheelhouse / version, [locked(group) for group in ("run", "packages", *install.EXTRAS)]
    stamp, wanted = place / ".complete", f"{install.digest(*locks)} {' '.join(platform(version))}"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    install.say(f"filling {place}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    words: list[str | Path] = [
        "--no-deps",
        "--require-hashes",
        "--only-binary",
        ":all:",
        *platform(version),
        "-d",
        place,
    ]
    build.pip("download", "-q", *words, *(word for each in locks for word in ("-r", each)))
    stamp.write_text(wanted)


# --- second step: our own wheels ----------------------------------------------------------------------------


def build_wheels(build: Build) -> tuple[Path, Path]:
    """Build the wheels of the service, the SDK and the drop-in, and the SDK's sdist; return the first two wheels."""
    install.say("building the wheels of mep, mep-sdk and mep-globus-compute")
    source = build.work / "source"
    for name in install.PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, source)
    normalise(source, build.epoch)
    words: list[str | Path] = ["--no-deps", "--no-index", "--no-build-isolation", "-w", build.out]
    build.pip("wheel", "-q", *words, source)
    script = ROOT / "packaging" / "sdk_wheel.py"
    for options in (["--sdist"], ["--drop-in"]):
        install.run(build.pip_python, "-I", script, "--out", build.out, *options)
    return next(build.out.glob("mep-*.whl")), next(build.out.glob("mep_sdk-*.whl"))


# --- the environments ------------------------------------------------------------------------------------------


def make_environment(build: Build, top: Path, wheel: Path, lock_file: Path) -> Path:
    """Make an environment over the system's Python in the directory `top`; return its site-packages."""
    site = top / build.target.site
    install_all(build, site, wheel, lock_file)
    binaries = top / "bin"
    binaries.mkdir()
    for name in install.KEPT_COMMANDS:
        if (site / "bin" / name).exists():
            _, _, body = (site / "bin" / name).read_text().partition("\n")
            (binaries / name).write_text(f"{FIRST_LINE}\n{body}")
            (binaries / name).chmod(0o755)
    shutil.rmtree(site / "bin", ignore_errors=True)
    remove_installer_files(site)
    (binaries / f"python{build.target.version}").symlink_to(build.target.python)
    for name in ("python3", "python"):
        (binaries / name).symlink_to(f"python{build.target.version}")
    return site


def remove_installer_files(site: Path) -> None:
    """Remove pip's own records."""
    for directory in site.glob("*.dist-info"):
        for name in INSTALLER_FILES:
            (directory / name).unlink(missing_ok=True)


def install_all(build: Build, site: Path, wheel: Path, lock_file: Path, *, version: str = "") -> None:
    """Install the locked distributions, and our own wheel, into the directory `site`."""
    build.install_offline(site, "--require-hashes", "-r", lock_file, version=version)
    build.install_offline(site, wheel, version=version)


def write_config(build: Build, top: Path, *, sees_system: bool) -> None:
    """Write the file that makes a directory a virtual environment."""
    lines = [f"home = {build.target.python.parent}", f"include-system-site-packages = {str(sees_system).lower()}"]
    (top / "pyvenv.cfg").write_text("\n".join([*lines, f"version = {build.target.version}"]) + "\n")


def sdk_lock(build: Build) -> Path:
    """Write the part of lock/run.txt that the SDK's package brings; return its path."""
    entries = (install.LOCKS / "run.txt").read_text().replace("\\\n", " ").splitlines()
    kept = [line for line in entries if line.partition("==")[0] in SDK]
    lock = build.work / "sdk.txt"
    lock.write_text("\n".join(kept) + "\n")
    return lock


def compile_modules(build: Build, site: Path, seen_as: str) -> None:
    """Write byte code that Python takes without a look at the sources, as if they were in `seen_as`.

    Without an interpreter of that version, scripts/release and mep-sdk's script write it at the site.
    """
    if not build.has_interpreter:
        return
    words = ["-q", "--invalidation-mode", "unchecked-hash", "-s", str(site), "-p", seen_as, str(site)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"}
    argv = [str(build.pip_python), "-s", "-P", "-m", "compileall", *words]
    # Some packages bring files for other Pythons (and templates), which do not compile.
    subprocess.run(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def content_digest(top: Path) -> str:
    """Return a short digest over the names and contents of all files below `top`."""
    total = hashlib.sha256()
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top)).encode()
        data = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        total.update(b"%d %b %d " % (len(name), name, len(data)) + data)
    return total.hexdigest()[:12]


def write_commands(top: Path, python: Path) -> None:
    """Write our commands, which start isolated, and the first lines of Parsl's that the service keeps."""
    for name in install.KEPT_COMMANDS:
        command = top / "bin" / name
        command.write_text(command.read_text().replace(FIRST_LINE, f"#!{python}", 1))
    install.write_commands(top, python)


def normalise(top: Path, epoch: int) -> None:
    """Give everything below `top` the same modes and times wherever it was made."""
    for path in [top, *top.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or _is_program(path) else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def _is_program(path: Path) -> bool:
    """Return whether a file can be executed: some wheels give every file the mode of a program."""
    if not path.stat().st_mode & stat.S_IXUSR:
        return False
    with path.open("rb") as file:
        return file.read(4).startswith((b"#!", b"\x7fELF"))


# --- the packages' files ---------------------------------------------------------------------------------------


def put(source: Path, target: Path, *, mode: int = 0o644) -> None:
    """Copy one file to its place in a package."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def stage_common(build: Build, wheel: Path) -> Path:
    """Lay out mep-common; return the environment in it."""
    root = build.work / "root" / "mep-common"
    packaged = root / "opt/mep/packaged"
    site = make_environment(build, packaged, wheel, locked("run"))
    write_config(build, packaged, sees_system=False)
    (site / EXTRAS_PATH).write_text("".join(f"{EXTRAS_DIRECTORY}/{extra}\n" for extra in install.EXTRAS))
    release = f"{build.version}-{build.release}-{content_digest(packaged)}"
    (packaged / "release").write_text(f"{release}\n")
    home = f"/opt/mep/releases/{release}"
    write_commands(packaged, Path(home, "bin", "python"))
    compile_modules(build, site, f"{home}/{build.target.site}")
    for name in ("bin", "lib", "pyvenv.cfg"):
        (root / "opt/mep" / name).symlink_to(f"current/{name}")
    put(SCRIPTS / "release", root / "usr/lib/mep/release", mode=0o755)
    put(ROOT / "systemd/sysusers.d/mep.conf", root / "usr/lib/sysusers.d/mep.conf")
    document(build, "mep-common", site)
    return packaged


def stage_endpoint(build: Build) -> None:
    """Lay out mep-endpoint."""
    root = build.work / "root" / "mep-endpoint"
    put(ROOT / "systemd/mep@.service", root / "usr/lib/systemd/system/mep@.service")
    put(ROOT / "systemd/mep.slice", root / "usr/lib/systemd/system/mep.slice")
    put(ROOT / "systemd/user/mep@.service", root / "usr/lib/systemd/user/mep@.service")
    put(ROOT / "systemd/tmpfiles.d/mep.conf", root / "usr/lib/tmpfiles.d/mep.conf")
    put(ROOT / "etc/logrotate.d/mep", root / "etc/logrotate.d/mep")
    for name in ("mep", "mep.rpm"):
        put(ROOT / "etc/pam.d" / name, root / "etc/pam.d" / name)
    documents = root / "share/doc/mep-endpoint"
    for example in sorted((ROOT / "etc/mep/example").iterdir()):
        put(example, documents / "examples" / example.name)
    for template in sorted((ROOT / "etc/templates").glob("*/*")):
        put(template, documents / "templates" / template.parent.name / template.name)
    for name in MONITORING:
        put(ROOT / "etc" / name, documents / "examples" / name)


def stage_relay(build: Build) -> None:
    """Lay out mep-relay."""
    root = build.work / "root" / "mep-relay"
    put(ROOT / "systemd/mep-relay.service", root / "usr/lib/systemd/system/mep-relay.service")
    put(ROOT / "etc/mep-relay.toml", root / "etc/mep-relay.toml")


def stage_sdk(build: Build, wheel: Path) -> None:
    """Lay out mep-sdk."""
    top = build.work / "root" / "mep-sdk" / "opt/mep-sdk"
    site = make_environment(build, top, wheel, sdk_lock(build))
    write_config(build, top, sees_system=True)
    install.write_commands(top, Path(HOME_OF["mep-sdk"], "bin", "python"), ["mep-sdk"])
    document(build, "mep-sdk", site)


def stage_extra(build: Build, extra: str) -> None:
    """Lay out mep-NAME of an extra: libraries that mep-common's environment finds while they are installed."""
    package = f"mep-{extra}"
    site = build.work / "root" / package / EXTRAS_DIRECTORY.lstrip("/") / extra
    build.install_offline(site, "--require-hashes", "-r", locked(extra))
    shutil.rmtree(site / "bin", ignore_errors=True)
    remove_installer_files(site)
    document(build, package, site)


def document(build: Build, package: str, site: Path) -> None:
    """Write licences and bill of materials of what a package brings."""
    docs = build.work / "root" / package / "share/doc" / package
    docs.mkdir(parents=True)
    (docs / "copyright").write_text(bill_of_materials.licences(site, (ROOT / "LICENSE").read_text()))
    bill = bill_of_materials.cyclonedx(site, package, build.version, build.epoch)
    (docs / "sbom.cdx.json").write_text(bill)
    (build.out / f"{package}-{build.version}-{build.release}.cdx.json").write_text(bill)


def runnable_site(build: Build, packaged: Path, wheel: Path) -> Path:
    """Return site-packages that the running Python can import: those of the package, or the same for this Python."""
    if build.has_interpreter:
        return packaged / build.target.site
    site = build.work / "runnable"
    install_all(build, site, wheel, locked("run"), version=build.running)
    return site


def stage_commands(build: Build, site: Path) -> None:
    """Put commands, manual pages and completions into the packages that they belong to."""
    made, manual = build.work / "manual", ROOT / "packaging/manual.py"
    install.run(build.pip_python, "-I", manual, site, made, str(build.epoch), *install.commands())
    for name in install.commands():
        package = PACKAGE_OF.get(name, "mep-endpoint")
        root = build.work / "root" / package
        (root / "usr/bin").mkdir(parents=True, exist_ok=True)
        (root / "usr/bin" / name).symlink_to(f"{HOME_OF.get(package, '/opt/mep')}/bin/{name}")
        for page in made.glob(f"{name}/man1/*"):
            packed = root / "share/man/man1" / f"{page.name}.gz"
            packed.parent.mkdir(parents=True, exist_ok=True)
            packed.write_bytes(gzip.compress(page.read_bytes(), mtime=build.epoch))
        for shell, where in COMPLETIONS.items():
            if (made / name / shell).exists():
                put(made / name / shell, root / "usr/share" / where.format(name))
    for package in ("mep-endpoint", "mep-relay"):
        put(build.work / "root/mep-common/share/doc/mep-common/copyright",
            build.work / "root" / package / "share/doc" / package / "copyright")  # fmt: skip


MONITORING = ("prometheus/prometheus.yml", "prometheus/mep.rules.yml", "grafana/mep.json")
COMPLETIONS = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/vendor-completions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}


# --- the packages ------------------------------------------------------------------------------------------------


def write_scripts(build: Build) -> Path:
    """Write the maintainer scripts: a head that understands dpkg and rpm, then the script itself."""
    made = build.work / "scripts"
    made.mkdir()
    action = (SCRIPTS / "action.sh").read_text()
    for source in SCRIPTS.glob("mep-*.*.sh"):
        package, event, _ = source.name.split(".")
        for name in [f"mep-{extra}" for extra in install.EXTRAS] if package == "mep-EXTRA" else [package]:
            script = source.read_text().replace("EXTRA", name.removeprefix("mep-"))
            (made / f"{name}.{event}").write_text(f"#!/bin/sh\nset -eu\none={ONE[event]}\n{action}\n{script}")
    return made


def descriptions() -> dict[str, str]:
    """Return the documents of packages.yaml by package; the one of mep-EXTRA for each extra."""
    found: dict[str, str] = {}
    for each in (ROOT / "packaging/packages.yaml").read_text().split("\n---\n"):
        name = next(line.split()[1] for line in each.splitlines() if line.startswith("name:"))
        if name == "mep-EXTRA":
            found |= {f"mep-{extra}": each.replace("EXTRA", extra) for extra in install.EXTRAS}
        else:
            found[name] = each
    return found


def run_nfpm(build: Build) -> None:
    """Make a .deb and an .rpm of each document in packages.yaml."""
    tools = build.work / "tools"
    build.install_offline(tools, "--require-hashes", "-r", locked("packages"))
    scripts = write_scripts(build)
    for name, each in descriptions().items():
        root = build.work / "root" / name
        normalise(root, build.epoch)
        filled = string.Template(each).substitute(
            root=root, documentation=documentation(root / "share"), scripts=scripts,
            version=build.version, release=build.release,
            arch=GOARCH[os.uname().machine], mtime=_time(build.epoch),
            python_deb=build.target.python.name, python_rpm=build.target.python, python_version=build.target.version,
        )  # fmt: skip
        config = build.work / f"{name}.yaml"
        config.write_text(filled)
        for kind in ("deb", "rpm"):
            environment = {"SOURCE_DATE_EPOCH": str(build.epoch), "PATH": "/usr/bin:/bin"}
            argv = [str(tools / "bin" / "nfpm"), "package", "-f", str(config), "-p", kind, "-t", str(build.out)]
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise install.CannotInstall(f"nfpm {name} {kind}: {done.stdout}{done.stderr}")


def documentation(share: Path) -> str:
    """Return an entry for each file of documentation: rpm marks these files, dpkg does not."""
    entries = []
    for path in sorted(path for path in share.rglob("*") if path.is_file()):
        names = f'src: "{path}", dst: "/usr/share/{path.relative_to(share)}"'
        entries += [f"  - {{{names}, packager: deb}}", f"  - {{{names}, type: doc, packager: rpm}}"]
    return "\n".join(entries)


def _time(epoch: int) -> str:
    return datetime.datetime.fromtimestamp(epoch, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def source_date() -> int:
    """Return SOURCE_DATE_EPOCH, or the time of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    argv = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return NO_GIT_EPOCH
    return int(done.stdout) if done.returncode == 0 else NO_GIT_EPOCH


def write_sums(out: Path) -> None:
    """Write SHA256SUMS over everything that was built."""
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(lines))


def build_all(build: Build) -> None:
    """Build everything for one version of Python into `out`, without a network."""
    os.environ.update(SOURCE_DATE_EPOCH=str(build.epoch), PYTHONHASHSEED="0")
    scratch = build.work
    with tempfile.TemporaryDirectory(prefix="build-", dir=scratch) as name:
        build.work = Path(name)
        wheel, sdk = build_wheels(build)
        install.say(f"laying out the packages for Python {build.target.version}")
        packaged = stage_common(build, wheel)
        stage_endpoint(build)
        stage_relay(build)
        stage_sdk(build, sdk)
        for extra in install.EXTRAS:
            stage_extra(build, extra)
        stage_commands(build, runnable_site(build, packaged, wheel))
        install.say("packing")
        run_nfpm(build)


def versions(asked: list[str]) -> list[str]:
    """Return the versions of Python to build for, from the command line; an empty text is the running one."""
    return list(lock.PYTHONS) if asked == ["all"] else asked or [""]


def main() -> int:
    """Build, or print one message with the reason."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=Path, required=True, help="the environment of pip and setuptools")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "packages", help="for the wheelhouse and builds")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="emptied first; where the packages go")
    parser.add_argument(
        "--release", default="1", help="counts the packages of one version: 2 follows a change of packaging"
    )
    parser.add_argument(
        "--python", nargs="*", default=[], choices=[*lock.PYTHONS, "all"],
        help="versions of Python to build for; without it the running one",
    )  # fmt: skip
    parser.add_argument("--wheelhouse-only", action="store_true", help="only download what a build needs")
    options = parser.parse_args()
    os.umask(0o022)
    try:
        work, out, environment = options.work.absolute(), options.out.absolute(), options.build.absolute()
        builds = [Build(work, out, environment, options.release, each) for each in versions(options.python)]
        work.mkdir(parents=True, exist_ok=True)
        for build in builds:
            fill_wheelhouse(build)
        if not options.wheelhouse_only:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            for build in builds:
                build_all(build)
            write_sums(out)
            install.say(f"{out} is ready")
    except install.CannotInstall as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
