"""The installed commands, as root, in an environment that another account has filled: no file of it runs as root."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

COMMANDS = (
    "mep", "globus-compute-endpoint", "gce", "mep-diagnostic", "globus-compute-diagnostic", "globus-idm-validator",
    "mep-relay",
)  # fmt: skip
BIN = Path(sys.prefix, "bin")
WRITES = "import os\nopen({mark!r}, 'a').write(f'{{os.geteuid()}}\\n')\n"


class Hostile:
    """A directory of code that writes a mark when it runs."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.mark = directory, directory / "ran"
        self.code = WRITES.format(mark=str(self.mark))

    def module(self, *parts: str) -> Path:
        """Write the code as the module at `parts` below the directory; return where."""
        path = self.directory.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.code)
        return path


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    with tempfile.TemporaryDirectory(prefix="meptest-") as name:
        yield Hostile(Path(name))


def python_path(hostile: Hostile) -> dict[str, str]:
    hostile.module("sitecustomize.py")
    return {"PYTHONPATH": str(hostile.directory)}


def shadowed_library(hostile: Hostile) -> dict[str, str]:
    hostile.module("re.py")
    hostile.module("click", "__init__.py")
    return {"PYTHONPATH": str(hostile.directory)}


def current_directory(hostile: Hostile) -> dict[str, str]:
    for package in ("mep", "relay", "click"):
        hostile.module(package, "__init__.py")
    return {"PYTHONPATH": "."}


def python_home(hostile: Hostile) -> dict[str, str]:
    own = Path(sysconfig.get_path("stdlib"))
    theirs = hostile.directory / "lib" / own.name
    theirs.mkdir(parents=True)
    for entry in own.iterdir():
        if entry.name != "site.py":
            (theirs / entry.name).symlink_to(entry)
    hostile.module("lib", own.name, "site.py")
    return {"PYTHONHOME": str(hostile.directory)}


def warning_category(hostile: Hostile) -> dict[str, str]:
    hostile.module("foreign.py")
    return {"PYTHONPATH": str(hostile.directory), "PYTHONWARNINGS": "error::foreign.Kind"}


def user_site(hostile: Hostile) -> dict[str, str]:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    hostile.module("lib", version, "site-packages", "usercustomize.py")
    return {"PYTHONUSERBASE": str(hostile.directory), "HOME": str(hostile.directory)}


def startup(hostile: Hostile) -> dict[str, str]:
    return {"PYTHONSTARTUP": str(hostile.module("startup.py")), "PYTHONINSPECT": "1"}


def inspect(hostile: Hostile) -> dict[str, str]:
    return {"PYTHONINSPECT": "1"}


@pytest.mark.parametrize(
    "fill",
    [
        python_path,
        shadowed_library,
        current_directory,
        python_home,
        warning_category,
        user_site,
        startup,
        inspect,
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_code_of_the_callers_environment_runs(
    command: str, fill: Callable[[Hostile], dict[str, str]], hostile: Hostile
) -> None:
    variables = fill(hostile)
    done = subprocess.run(
        [BIN / command, "--help"],
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **variables},
        input=hostile.code,  # the file that PYTHONINSPECT would have it read
        cwd=hostile.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not hostile.mark.exists(), f"foreign code ran as uid {hostile.mark.read_text()}"
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_isolated_and_imports_what_is_installed(command: str) -> None:
    head = (BIN / command).read_text().splitlines()[0]
    assert head == f"#!{sys.prefix}/bin/python -I"


def test_roots_command_hands_no_python_variable_on() -> None:
    """Children of `mep`, an editor or a hook, would act on them."""
    code = "import os\nfrom mep.cli import main\nmain._isolate_root()\nprint([n for n in os.environ if 'PYTHON' in n])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        env={**os.environ, "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere/file"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"
