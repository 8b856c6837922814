#!/usr/bin/env python3
"""Installs MEP into a virtual environment: what `make install` runs. Standard library only.

As root: a service environment (default /opt/mep) over an interpreter that every account can execute, with
the system accounts of the endpoint and the relay. Otherwise: an environment in the checkout, for
single-user mode. No step is repeated: a stamp records the installed versions and their sources.

These environments share PREFIX as the beginning of their names:

  PREFIX        the service: the distributions of lock/run.txt and mep only, without pip.

  PREFIX-build  pip and setuptools (lock/build.txt), which install the other two.

  PREFIX-tests  with --tools or --tests: the tools for tests, lint and types (lock/tools.txt).

  PREFIX-science  with --tests: what a researcher's environment has, for tests of the docs (lock/science.txt, node/).

  PREFIX-services  with --tests: npm packages that the tests serve on loopback (tests/services).

pip takes wheels alone, each by its SHA-256 in a lock file (lock.py writes them). No code of a download runs here.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("identity", "mep", "mep_link", "mep_sdk", "mep_wire", "relay", "user_endpoint")
ACCOUNTS = ("mep", "mep-idmap", "mep-relay", "mep-register")
CANDIDATES = (
    "/usr/bin/python3",
    "/usr/bin/python3.14",
    "/usr/bin/python3.13",
    "/usr/bin/python3.12",
    "/usr/bin/python3.11",
)
OLDEST, NEWEST = (3, 11), (3, 14)
"""The lock files have wheels for these versions and those between them."""
STAMP = ".installed.json"
LOCK_DIR = ".install-lock"
MAX_FIRST_LINE = 127
"""Older kernels read only this much of a script's first line."""
LOCKS = ROOT / "packaging" / "lock"
NODE = ROOT / "packaging" / "node"
EXTRAS = ("kubernetes", "postgresql", "s3")
"""Files in LOCKS that a site may add to its service."""
KEPT_COMMANDS = frozenset({"process_worker_pool.py", "interchange.py"})
"""Parsl's commands that are started by name: by a site's `launch_cmd`, on nodes, and by the benchmark of bare Parsl."""
TOOLS_PATH = "mep-service.pth"
NO_SERVICES = (
    "#!/bin/sh\n# Made by MEP's installer for the time it takes: remove this file if that has ended.\nexit 101\n"
)
PROBE = (
    "import sys, sysconfig, os; print(*sys.version_info[:2], os.path.realpath(sys.executable), os.__file__, sep='\\n')"
)


class CannotInstall(Exception):
    """The installation stops: the text says why, and what the person can do about it."""


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"install: {text}", flush=True)


def run(*argv: str | Path, cwd: Path | None = None) -> None:
    """Run a command, with nothing on its input; its output is shown only if it fails."""
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=cwd
    )
    if done.returncode:
        raise CannotInstall(f"{' '.join(map(str, argv))} failed:\n{done.stdout}{done.stderr}")


# --- which interpreter ------------------------------------------------------------------------------


def closed_to_others(path: Path) -> Path | None:
    """Return the first part of `path` that other accounts cannot pass or read, or None."""
    real = path.resolve()
    for part in [*reversed(real.parents), real]:
        mode = part.stat().st_mode
        needed = stat.S_IXOTH if part != real else stat.S_IROTH | (stat.S_IXOTH if real.is_dir() else 0)
        if mode & needed != needed:
            return part
    return None


def probe(python: str) -> tuple[tuple[int, int], Path, Path] | None:
    """Return version, real path and library directory of an interpreter, or None if it does not run."""
    try:
        done = subprocess.run([python, "-I", "-c", PROBE], capture_output=True, text=True, check=False)
    except OSError:
        return None
    if done.returncode:
        return None
    major, minor, real, library = done.stdout.splitlines()
    return (int(major), int(minor)), Path(real), Path(library).parent


def objection(python: str, *, shared: bool) -> str | None:
    """Return why this interpreter can't be used, or None. `shared`: other accounts must be able to execute it."""
    found = probe(python)
    if found is None:
        return "it does not run"
    version, real, library = found
    if version < OLDEST:
        return f"it is Python {version[0]}.{version[1]}; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    if version > NEWEST:
        return f"it is Python {version[0]}.{version[1]}; the lock files have wheels up to {NEWEST[0]}.{NEWEST[1]}"
    if shared and (closed := closed_to_others(real) or closed_to_others(library)):
        return f"other accounts cannot enter or read {closed}, and user endpoints run as other accounts"
    return None


def choose_python(*, shared: bool) -> str:
    """Return the interpreter to build on. Raises CannotInstall saying what to do."""
    if asked := os.environ.get("MEP_PYTHON"):
        if why := objection(asked, shared=shared):
            raise CannotInstall(f"MEP_PYTHON={asked} cannot be used: {why}.")
        return asked
    on_path = shutil.which("python3")
    candidates = [*CANDIDATES, on_path] if shared else [on_path, *CANDIDATES]
    objections = []
    for python in dict.fromkeys(filter(None, candidates)):
        if not Path(python).exists():
            continue
        why = objection(python, shared=shared)
        if why is None:
            return python
        objections.append(f"  {python}: {why}")
    raise CannotInstall(
        "no usable Python 3.11 or newer was found:\n"
        + "\n".join(objections)
        + "\nInstall the system's own (Debian: apt-get install python3 python3-venv), or name one that every"
        " account can execute: MEP_PYTHON=/path/to/python3 make install"
    )


# --- what the system must have ------------------------------------------------------------------------


def can_make_venv(python: str) -> bool:
    """Return whether this interpreter has venv and the pip it puts there (Debian splits them off)."""
    argv = [python, "-I", "-c", "import venv, ensurepip"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def no_service_starts(policy: Path = Path("/usr/sbin/policy-rc.d")) -> Iterator[None]:
    """Keep packages from starting daemons (slapd would listen to the network), unless the site has its own policy."""
    if policy.exists() and policy.read_text() != NO_SERVICES:
        yield
        return
    policy.write_text(NO_SERVICES)  # over one that a killed installation left
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def apt_install(packages: list[str]) -> None:
    """Install Debian packages; refresh the package lists only if the first attempt fails."""
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    say(f"apt-get install {' '.join(packages)}")
    with no_service_starts():
        try:
            run(*command)
        except CannotInstall:
            run("apt-get", "update", "-q")
            run(*command)


def missing_debian_packages(file: Path) -> list[str]:
    """Return the packages listed in `file` that are not installed (none where there is no dpkg)."""
    if not shutil.which("dpkg-query"):
        return []
    names = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    shown = ["dpkg-query", "-W", "-f", "${db:Status-Status}"]
    return [
        name
        for name in filter(None, names)
        if subprocess.run([*shown, name], capture_output=True, text=True, check=False).stdout != "installed"
    ]


def prepare_system(python: str, *, root: bool, tests: bool) -> None:
    """Make sure that venv works, and as root that Debian's packages and the system accounts exist."""
    if not can_make_venv(python):
        if not root or not shutil.which("apt-get") or not python.startswith("/usr/bin/"):
            raise CannotInstall(
                f"{python} cannot make virtual environments. On Debian, ask the administrator for:\n"
                "  apt-get install python3-venv"
            )
        apt_install(["python3-venv"])
    if not root:
        return
    lists = ["run-packages.txt", *(["test-packages.txt"] if tests else [])]
    missing = [name for item in lists for name in missing_debian_packages(ROOT / "packaging" / item)]
    if missing:
        apt_install(missing)
    for account in ACCOUNTS:
        make_account(account)
    install_pam_service()


def install_pam_service(directory: Path = Path("/etc/pam.d")) -> None:
    """Put the PAM service of user endpoints where PAM looks, unless the site has one; used where PAM is enabled."""
    service = directory / "mep"
    if service.exists() or not (directory / "common-account").exists():
        return  # the shipped file includes Debian's stacks and says what to write elsewhere
    say(f"installing {service}")
    shutil.copyfile(ROOT / "etc" / "pam.d" / "mep", service)
    service.chmod(0o644)


def make_account(name: str) -> None:
    """Make a system account without login or home directory, unless it is there."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(name)
        return
    nologin = next((p for p in ("/usr/sbin/nologin", "/sbin/nologin") if Path(p).exists()), "/bin/false")
    say(f"making the system account {name}")
    homeless = ["--no-create-home", "--home-dir", "/nonexistent", "--shell", nologin]
    run("useradd", "--system", "--user-group", *homeless, name)


# --- the environment itself -----------------------------------------------------------------------------


def digest(*paths: Path) -> str:
    """Return a hash over names and contents of files and of directories' files."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" not in file.parts:
                total.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
                total.update(file.read_bytes())
    return total.hexdigest()


@contextlib.contextmanager
def locked(prefix: Path) -> Iterator[None]:
    """Hold the installation for this process alone: `make demo` and `make test` may start together."""
    # Other accounts cannot enter the lock's directory: one that could open the file could hold the lock.
    (prefix / LOCK_DIR).mkdir(parents=True, exist_ok=True, mode=0o700)
    (prefix / LOCK_DIR).chmod(0o700)
    with (prefix / LOCK_DIR / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            say(f"waiting for another installation into {prefix} to end (pid {lock.read().strip() or 'unknown'})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def read_stamp(prefix: Path) -> dict[str, str]:
    """Return the record of the last installation, empty if there is none."""
    try:
        stamp: dict[str, str] = json.loads((prefix / STAMP).read_text())
    except (OSError, ValueError):
        return {}
    return stamp


def empty(prefix: Path) -> None:
    """Remove an unusable environment, and no directory that isn't an environment."""
    children = [child for child in prefix.iterdir() if child.name != LOCK_DIR]
    if children and not (prefix / "pyvenv.cfg").exists():
        raise CannotInstall(f"{prefix} is not a virtual environment and not empty: choose another PREFIX.")
    for child in children:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()


def make_venv(prefix: Path, python: str, *options: str) -> None:
    """Make a virtual environment over `python`, in place of the one that is there."""
    say(f"making {prefix} over {python}")
    prefix.mkdir(parents=True, exist_ok=True)
    empty(prefix)
    run(python, "-I", "-m", "venv", *options, prefix)


def normal(name: str) -> str:
    """Return a distribution's name as the packaging specifications normalise it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions(*groups: str) -> dict[str, str]:
    """Return the version of every distribution in these lock files, by normal name."""
    lines = [line for group in groups for line in (LOCKS / f"{group}.txt").read_text().splitlines()]
    pins = [line.split()[0].partition("==") for line in lines if line and line[0] not in "# "]
    return {normal(name): version for name, _, version in pins}


def installed(prefix: Path) -> dict[str, str]:
    """Return the version of every distribution in an environment's own site-packages, by normal name."""
    found = importlib.metadata.distributions(path=[str(site_packages(prefix))])
    return {normal(each.metadata["Name"] or ""): each.version for each in found}


def site_packages(prefix: Path) -> Path:
    """Return where an environment has its packages."""
    return next(prefix.glob("lib/python*/site-packages"))


class Pip:
    """The pip of PREFIX-build, which works on other environments."""

    def __init__(self, build: Path) -> None:
        self._python = build / "bin" / "python"

    def __call__(self, prefix: Path, command: str, *words: str | Path) -> None:
        """Run a command of pip on the environment at `prefix`."""
        pip: list[str | Path] = [
            self._python,
            "-I",
            "-m",
            "pip",
            "--python",
            prefix / "bin" / "python",
            "--disable-pip-version-check",
        ]
        run(*pip, command, "-q", *words)

    def install_locked(self, prefix: Path, *groups: str) -> None:
        """Install the wheels in these lock files. pip looks for no other packages and builds none."""
        files = [word for group in groups for word in ("-r", LOCKS / f"{group}.txt")]
        self(prefix, "install", "--require-hashes", "--no-deps", "--only-binary", ":all:", *files)

    def build_wheel(self, source: Path, out: Path) -> Path:
        """Build our own wheel with the setuptools of PREFIX-build, in which nothing is downloaded; return its path."""
        words: list[str | Path] = ["--no-deps", "--no-index", "--no-build-isolation", "-w", out]
        run(self._python, "-I", "-m", "pip", "--disable-pip-version-check", "wheel", "-q", *words, source)
        return next(out.glob("*.whl"))


def make_build_environment(build: Path, python: str) -> None:
    """Make the environment of pip and setuptools. The pip that Python brings installs the pinned one by its hash."""
    make_venv(build, python)
    words = ["install", "-q", "--disable-pip-version-check", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
    run(build / "bin" / "python", "-I", "-m", "pip", *words, "-r", LOCKS / "build.txt")


def install_dependencies(pip: Pip, prefix: Path, extras: list[str]) -> None:
    """Install the locked distributions, and remove every other."""
    say(f"installing the locked dependencies{' with ' + ', '.join(extras) if extras else ''}")
    pip.install_locked(prefix, "run", *extras)
    pip(prefix, "check")
    foreign = sorted(installed(prefix).keys() - locked_versions("run", *extras).keys() - {"mep"})
    if foreign:
        say(f"removing from {prefix}: {', '.join(foreign)}")
        pip(prefix, "uninstall", "-y", *foreign)


def install_project(pip: Pip, prefix: Path) -> None:
    """Install the project's own packages: a copy, never a reference to the checkout."""
    say("installing mep")
    # A developer's way to the checkout, and setuptools' shim for distutils, which every start would pay for.
    for name in ("mep-dev.pth", "distutils-precedence.pth"):
        (site_packages(prefix) / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mep-build-") as build:
        source = Path(build, "source")
        for name in PACKAGES:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "pyproject.toml", source)
        wheel = pip.build_wheel(source, Path(build, "wheel"))
        pip(prefix, "install", "--no-deps", "--no-index", "--force-reinstall", wheel)
    remove_commands(prefix)
    write_commands(prefix)


def remove_commands(prefix: Path) -> None:
    """Remove the commands of our dependencies: they do not start isolated, and the service does not use them."""
    kept = KEPT_COMMANDS | commands().keys()
    for each in importlib.metadata.distributions(path=[str(site_packages(prefix))]):
        for file in each.files or ():
            if file.parts[-2:-1] == ("bin",) and file.name not in kept:
                (prefix / "bin" / file.name).unlink(missing_ok=True)


def install_tools(pip: Pip, prefix: Path, tools: Path, python: str) -> None:
    """Make the environment of the tools over the service's."""
    make_venv(tools, python, "--without-pip")
    say("installing what tests, lint and types use")
    pip.install_locked(tools, "tools")
    (site_packages(tools) / TOOLS_PATH).write_text(f"{site_packages(prefix)}\n")
    # Tests run in the service's own interpreter, so a process that they start is the service without the tools.
    runner = tools / "bin" / "pytest"
    body = f"import sys\n\nsys.path.append({str(site_packages(tools))!r})\n\nimport pytest\n\nsys.exit(pytest.main())\n"
    runner.write_text(first_line(prefix / "bin" / "python") + body)
    runner.chmod(0o755)


def install_science(pip: Pip, prefix: Path, science: Path, python: str) -> None:
    """Make the environment of a researcher who uses notebooks and the usual packages, over the service's."""
    make_venv(science, python, "--without-pip")
    say("installing the packages that the docs' notebooks use")
    pip.install_locked(science, "science")
    (site_packages(science) / TOOLS_PATH).write_text(f"{site_packages(prefix)}\n")
    if shutil.which("npm") is None:
        raise CannotInstall("npm was not found, which installs pyright for the tests: install your system's npm.")
    for name in ("package.json", "package-lock.json"):  # npm checks each download by its hash in the lock file
        shutil.copy2(NODE / name, science)
    with tempfile.TemporaryDirectory(prefix="mep-npm-") as cache:
        words = ["ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", cache]
        run("npm", *words, cwd=science)


def project() -> dict[str, Any]:
    """Return what pyproject.toml says of the project."""
    import tomllib

    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def commands() -> dict[str, str]:
    """Return our own commands, from pyproject.toml: name to `module:function`."""
    scripts: dict[str, str] = project()["scripts"]
    return scripts


def write_commands(prefix: Path, python: Path | None = None, names: Iterable[str] = ()) -> None:
    """Write our commands over pip's: isolated, so that root runs no code of the caller's PYTHON* variables.

    `-I` stands in the first line, since Python acts on those variables before the first statement of a script.
    `python` is the interpreter that they name, if the environment will be elsewhere than in `prefix`. `names`: all of
    our commands, if it is empty.
    """
    python = python or prefix / "bin" / "python"
    for name in names or commands():
        module, _, function = commands()[name].partition(":")
        body = f"import sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        script = prefix / "bin" / name
        fresh = script.with_name(f".{name}.new")
        fresh.write_text(first_line(python) + body)
        fresh.chmod(0o755)
        fresh.replace(script)


def first_line(python: Path) -> str:
    """Return a first line that starts a script under `python -I`, through sh if the kernel can't take the path."""
    line = f"#!{python} -I\n"
    if len(line) <= MAX_FIRST_LINE and not re.search(r"\s", str(python)):
        return line
    return f"#!/bin/sh\n'''exec' {shlex.quote(str(python))} -I \"$0\" \"$@\"\n' '''\n"  # to Python a string


def open_to_everybody(prefix: Path) -> None:
    """Compile every module (users cannot write .pyc files here) and let every account read and enter."""
    python = prefix / "bin" / "python"
    libraries = list(prefix.glob("lib/python*/site-packages"))
    subprocess.run([python, "-I", "-m", "compileall", "-q", "-j", "0", *libraries], capture_output=True, check=False)
    for top, directories, files in os.walk(prefix):
        if LOCK_DIR in directories:
            directories.remove(LOCK_DIR)
        for path in (Path(top), *(Path(top, name) for name in files)):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            wanted = mode | 0o444 | (0o111 if stat.S_ISDIR(mode) or mode & 0o100 else 0)
            if wanted != mode:
                path.chmod(stat.S_IMODE(wanted))


def beside(prefix: Path, what: str) -> Path:
    """Return the path of an installation's environment `what` (build, tests)."""
    return prefix.with_name(f"{prefix.name}-{what}")


def wanted_stamps(python: str, extras: list[str]) -> dict[str, dict[str, str]]:
    """Return the stamp that each environment has when it is up to date."""
    found = probe(python)
    assert found is not None
    base = {"python": f"{found[1]} {found[0]}", "installer": digest(Path(__file__).resolve())}
    files = [LOCKS / f"{group}.txt" for group in ("run", *extras)]
    return {
        "build": {**base, "locked": digest(LOCKS / "build.txt")},
        "service": {
            **base,
            "extras": " ".join(extras),
            "dependencies": digest(*files),
            "project": digest(ROOT / "pyproject.toml", *(ROOT / name for name in PACKAGES)),
        },
        "tests": {**base, "locked": digest(LOCKS / "tools.txt")},
        "science": {**base, "locked": digest(LOCKS / "science.txt", NODE)},
    }


def up_to_date(prefix: Path, wanted: dict[str, str]) -> bool:
    """Return whether an environment's stamp is current; remove a stale stamp, since work on the environment begins."""
    if read_stamp(prefix) == wanted:
        return True
    (prefix / STAMP).unlink(missing_ok=True)
    return False


def finish(prefix: Path, wanted: dict[str, str]) -> None:
    """Let every account use an environment, and write its stamp."""
    open_to_everybody(prefix)
    (prefix / STAMP).write_text(json.dumps(wanted))
    say(f"{prefix} is ready")


def install(
    prefix: Path, python: str, *, tools: bool = False, science: bool = False, extras: list[str] | None = None
) -> None:
    """Bring the environments up to date with the checkout. Extras of an earlier installation stay."""
    with locked(prefix):
        stamp = read_stamp(prefix)
        chosen = sorted({*(extras or []), *stamp.get("extras", "").split()})
        wanted = wanted_stamps(python, chosen)
        build, tests = beside(prefix, "build"), beside(prefix, "tests")
        pip = Pip(build)
        needed = ["service", *(["tests"] if tools else []), *(["science"] if science else [])]
        places = {"service": prefix, "tests": tests, "science": beside(prefix, "science")}
        if all(read_stamp(places[each]) == wanted[each] for each in needed):
            return
        if not up_to_date(build, wanted["build"]):
            make_build_environment(build, python)
            finish(build, wanted["build"])
        if not up_to_date(prefix, wanted["service"]):
            install_service(pip, prefix, python, stamp, wanted["service"])
            finish(prefix, wanted["service"])
        if tools and not up_to_date(tests, wanted["tests"]):
            install_tools(pip, prefix, tests, python)
            finish(tests, wanted["tests"])
        if science and not up_to_date(places["science"], wanted["science"]):
            install_science(pip, prefix, places["science"], python)
            finish(places["science"], wanted["science"])


def install_services(prefix: Path) -> None:
    """Install the npm packages of services that only tests use, beside PREFIX: those of their lock files, by hash."""
    for source in sorted((ROOT / "tests" / "services").glob("*/package-lock.json")):
        place = beside(prefix, "services") / source.parent.name
        wanted = {"locked": digest(source.parent)}
        if read_stamp(place) == wanted:
            continue
        if shutil.which("npm") is None:
            if os.geteuid() != 0:
                raise CannotInstall(
                    "npm was not found. On Debian, ask the administrator for: apt-get install nodejs npm"
                )
            apt_install(["nodejs", "npm"])
        say(f"installing {source.parent.name} for the tests")
        place.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy2(source.parent / file, place)
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=place)
        for path in (place, *place.rglob("*")):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        (place / STAMP).write_text(json.dumps(wanted))
        say(f"{place} is ready")


def install_service(pip: Pip, prefix: Path, python: str, stamp: dict[str, str], wanted: dict[str, str]) -> None:
    """Bring the service's environment up to date; `stamp` is that of the last installation."""
    if stamp.get("python", wanted["python"]) != wanted["python"] or probe(str(prefix / "bin" / "python")) is None:
        make_venv(prefix, python, "--without-pip")
        stamp = {}
    if any(stamp.get(key) != wanted[key] for key in ("dependencies", "extras", "installer")):
        install_dependencies(pip, prefix, wanted["extras"].split())
    install_project(pip, prefix)


def main() -> int:
    """Install, or print one message with the reason and the remedy."""
    parser = argparse.ArgumentParser(description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--prefix", type=Path, help="where the virtual environment goes")
    where.add_argument("--packages", nargs="+", metavar="NAME", help="only install Debian packages; starts no service")
    parser.add_argument("--tests", action="store_true", help="also what only the tests need; as root with packages")
    parser.add_argument("--tools", action="store_true", help="also the environment of tests, lint and types")
    parser.add_argument("--with", dest="extras", choices=EXTRAS, action="append", help="also these, in the service")
    options = parser.parse_args()
    root = os.geteuid() == 0
    os.umask(0o022)
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        del os.environ[name]  # pip starts the environments' interpreters without -I
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # useradd; absent after a plain su
    try:
        if options.packages:
            apt_install(options.packages)
            return 0
        prefix = options.prefix.absolute()
        python = choose_python(shared=root)
        if sys.version_info < OLDEST:
            os.execv(python, [python, *sys.argv])
        if root and (closed := closed_to_others(_existing(prefix))):
            raise CannotInstall(f"other accounts cannot enter {closed}: choose a PREFIX that they can, like /opt/mep.")
        prepare_system(python, root=root, tests=options.tests)
        install(prefix, python, tools=options.tools or options.tests, science=options.tests, extras=options.extras)
        if options.tests:
            install_services(prefix)
    except CannotInstall as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


def _existing(path: Path) -> Path:
    return next(part for part in (path, *path.parents) if part.exists())


if __name__ == "__main__":
    sys.exit(main())
