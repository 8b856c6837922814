"""The installer: the interpreters that it takes, its message otherwise, and that it does nothing twice."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mep_install", ROOT / "packaging" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def _in_private_home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


def test_an_interpreter_inside_a_private_home_is_refused_with_the_closed_directory(
    install: ModuleType, tmp_path: Path
) -> None:
    python = _in_private_home(tmp_path) / "python3"
    library = tmp_path / "home" / "lib"
    library.mkdir()
    (library / "os.py").write_text("")
    answer = _script(python, f"printf '%s\\n' 3 12 {python} {library}/os.py")
    reason = install.objection(answer, shared=True)
    assert reason is not None
    assert "other accounts cannot enter or read" in reason
    assert install.objection(answer, shared=False) is None


def test_one_that_is_too_old_or_does_not_run_is_refused(install: ModuleType, tmp_path: Path) -> None:
    old = _script(tmp_path / "old", "printf '%s\\n' 3 9 /usr/bin/python3.9 /usr/lib/python3.9/os.py")
    assert "3.9" in install.objection(old, shared=False)
    assert install.objection(_script(tmp_path / "bad", "exit 1"), shared=False) == "it does not run"


def test_the_asked_for_interpreter_is_never_replaced_silently(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEP_PYTHON", _script(tmp_path / "python3", "exit 1"))
    with pytest.raises(install.CannotInstall, match=r"MEP_PYTHON=.* cannot be used"):
        install.choose_python(shared=False)


def test_without_any_usable_one_it_says_what_to_do(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEP_PYTHON", raising=False)
    monkeypatch.setattr(install, "CANDIDATES", (_script(tmp_path / "python3", "exit 1"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.CannotInstall) as caught:
        install.choose_python(shared=True)
    assert "apt-get install python3 python3-venv" in str(caught.value)
    assert "MEP_PYTHON=" in str(caught.value)


def test_an_ordinary_user_without_venv_is_told_what_to_ask_for(install: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(install.CannotInstall, match="apt-get install python3-venv"):
        install.prepare_system(_script(tmp_path / "python3", "exit 1"), root=False, tests=False)


def test_a_directory_that_is_no_environment_is_never_emptied(install: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(install.CannotInstall, match="choose another PREFIX"):
        install.empty(tmp_path)
    assert (tmp_path / "precious").exists()


def test_what_runs_here_was_installed_by_it_and_is_open_to_everybody(install: ModuleType) -> None:
    prefix = Path(sys.prefix)
    if os.geteuid() == 0:
        assert install.closed_to_others(prefix / "bin" / "python") is None
        packages = next(prefix.glob("lib/python*/site-packages"))
        assert install.closed_to_others(packages / "msgspec" / "__init__.py") is None
    assert install.objection(str(prefix / "bin" / "python"), shared=os.geteuid() == 0) is None


GROUPS = ("run", "kubernetes", "postgresql", "science", "tools", "packages", "build")


def _required(*requirements: str) -> set[str]:
    return {re.split(r"[<>=\[ ]", one)[0].lower().replace("_", "-") for one in requirements}


def test_every_requirement_is_locked(install: ModuleType) -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = document["project"]
    run = install.locked_versions("run")
    assert _required(*project["dependencies"]) <= run.keys()
    assert _required(*project["optional-dependencies"]["dev"]) <= install.locked_versions("run", "tools").keys()
    science = install.locked_versions("science")
    assert _required(*project["optional-dependencies"]["science"]) <= science.keys()
    assert not science.keys() & run.keys()
    assert _required(*document["build-system"]["requires"], "pip") == install.locked_versions("build").keys()
    for extra in install.EXTRAS:
        added = install.locked_versions(extra)
        assert _required(*project["optional-dependencies"][extra]) <= added.keys()
        assert not added.keys() & run.keys()
    assert not {"pytest", "mypy", "ruff", "hypothesis", "pip", "setuptools", "iniconfig", "pluggy"} & run.keys()


def test_locks_and_constraints_name_the_same_versions(install: ModuleType) -> None:
    lines = (ROOT / "packaging" / "constraints.txt").read_text().splitlines()
    constrained = {install.normal(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert install.locked_versions(*GROUPS) == constrained


@pytest.mark.parametrize("group", GROUPS)
def test_every_locked_distribution_has_hashes(install: ModuleType, group: str) -> None:
    text = (install.LOCKS / f"{group}.txt").read_text().replace("\\\n", "")
    for line in text.splitlines()[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+ (?: +--hash=sha256:[0-9a-f]{64})+", line), line


def test_the_service_is_what_the_lock_says_and_nothing_else(install: ModuleType) -> None:
    prefix = Path(sys.prefix)
    extras = install.read_stamp(prefix)["extras"].split()
    found = install.installed(prefix)
    assert found.pop("mep")
    assert found == install.locked_versions("run", *extras)
    code = "import sys, importlib.util as u; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    foreign = ("pytest", "_pytest", "mypy", "hypothesis", "ruff", "pip", "setuptools", "globus_identity_mapping")
    done = subprocess.run([sys.executable, "-I", "-c", code, *foreign], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_services_commands_are_ours_and_two_of_parsls(install: ModuleType) -> None:
    found = {path.name for path in Path(sys.prefix, "bin").iterdir() if not path.is_dir()}
    others = {name for name in found if not re.match(r"(python[0-9.]*|[Aa]ctivate(\..*)?|\..*)$", name)}
    assert others - install.KEPT_COMMANDS == install.commands().keys()


class Shelf:
    """Wheels on this machine, an environment, and the installer with lock files of its own."""

    def __init__(self, directory: Path, install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheels, self.locks, self.prefix = directory / "wheels", directory / "locks", directory / "env"
        self.wheels.mkdir()
        self.locks.mkdir()
        self.wheel = self.wheels / "shown-1-py3-none-any.whl"
        self.write("1")
        monkeypatch.setattr(install, "LOCKS", self.locks)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.wheels))
        subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", self.prefix], check=True)
        self._pip = install.Pip(install.beside(Path(sys.prefix), "build"))

    def write(self, value: str) -> None:
        """Write the wheel."""
        about = "shown-1.dist-info"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("shown.py", f"VALUE = {value}\n")
            archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: shown\nVersion: 1\n")
            archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{about}/RECORD", f"shown.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")

    def lock(self, file: Path, *, hashed: bool = True) -> None:
        """Write a lock file with the hash that `file` has now."""
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (self.locks / "run.txt").write_text(f"shown==1{f' --hash=sha256:{digest}' if hashed else ''}\n")

    def install(self) -> None:
        """Install the packages that the lock file names."""
        self._pip.install_locked(self.prefix, "run")

    def is_there(self) -> bool:
        return bool(list(self.prefix.glob("lib/python*/site-packages/shown.py")))


@pytest.fixture
def shelf(tmp_path: Path, install: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, install, monkeypatch)


def test_a_wheel_with_the_locked_hash_is_installed(shelf: Shelf) -> None:
    shelf.lock(shelf.wheel)
    shelf.install()
    assert shelf.is_there()


def test_a_tampered_wheel_is_refused(shelf: Shelf, install: ModuleType) -> None:
    shelf.lock(shelf.wheel)
    shelf.write("2")
    with pytest.raises(install.CannotInstall, match=r"(?i)hash"):
        shelf.install()
    assert not shelf.is_there()


def test_a_lock_without_a_hash_is_refused(shelf: Shelf, install: ModuleType) -> None:
    shelf.lock(shelf.wheel, hashed=False)
    with pytest.raises(install.CannotInstall, match=r"(?i)hash"):
        shelf.install()
    assert not shelf.is_there()


def test_no_code_of_a_source_distribution_runs(shelf: Shelf, install: ModuleType, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "setup.py").write_text(f"open({str(mark)!r}, 'w')\n")
    source = shelf.wheels / "shown-1.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "shown-1/setup.py")
    shelf.wheel.unlink()
    shelf.lock(source)
    with pytest.raises(install.CannotInstall):
        shelf.install()
    assert not mark.exists()


def test_a_distribution_that_is_not_locked_is_removed(shelf: Shelf, install: ModuleType) -> None:
    shelf.lock(shelf.wheel)
    shelf.install()
    (shelf.locks / "run.txt").write_text("# empty\n")
    install.install_dependencies(install.Pip(install.beside(Path(sys.prefix), "build")), shelf.prefix, [])
    assert not shelf.is_there()


def test_a_python_that_the_locks_have_no_wheels_for_is_refused(install: ModuleType, tmp_path: Path) -> None:
    newer = _script(tmp_path / "new", "printf '%s\\n' 3 99 /usr/bin/python3.99 /usr/lib/python3.99/os.py")
    assert "wheels up to 3.14" in install.objection(newer, shared=False)


def test_packages_start_no_service_and_a_sites_own_policy_stays(install: ModuleType, tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    for left in (False, True):
        if left:
            policy.write_text(install.NO_SERVICES)
        with install.no_service_starts(policy):
            assert "exit 101" in policy.read_text()
            assert policy.stat().st_mode & 0o777 == 0o755
        assert not policy.exists()
    policy.write_text("#!/bin/sh\nexit 0\n")
    with install.no_service_starts(policy):
        assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_the_pam_service_is_installed_once_and_only_where_its_stacks_are(install: ModuleType, tmp_path: Path) -> None:
    service = tmp_path / "mep"
    install.install_pam_service(tmp_path)
    assert not service.exists()
    (tmp_path / "common-account").touch()
    install.install_pam_service(tmp_path)
    assert "@include common-account" in service.read_text()
    service.write_text("the site's own")
    install.install_pam_service(tmp_path)
    assert service.read_text() == "the site's own"


@pytest.mark.parametrize("directory", ["short", "with a space", "long" * 40])
def test_a_command_starts_isolated_wherever_the_prefix_is(
    install: ModuleType, tmp_path: Path, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tmp_path / directory
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(install, "commands", lambda: {"shown": "platform:python_version"})
    install.write_commands(prefix)
    script = prefix / "bin" / "shown"
    script.write_text(script.read_text().replace("sys.exit(", "print(sys.flags.isolated, sys.argv[1:], "))
    done = subprocess.run([script, "a b", "$c"], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("1 ['a b', '$c'] ")


# --- the lock ---------------------------------------------------------------------------------------------------

_INSTALLATION = "import sys; sys.path[:0] = [sys.argv[2]]; import install, pathlib\n"
_HOLD = _INSTALLATION + "with install.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def _installation(prefix: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-I", "-c", _HOLD, str(prefix), str(ROOT / "packaging")]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_one_that_waits_for_the_lock_says_for_whom(tmp_path: Path) -> None:
    first = _installation(tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    second = _installation(tmp_path)
    assert second.stdout is not None
    waits = f"install: waiting for another installation into {tmp_path} to end (pid {first.pid})\n"
    assert second.stdout.readline() == waits
    first.communicate("")
    assert second.stdout.readline() == "held\n"
    second.communicate("")


@pytest.mark.root
def test_a_lock_that_other_accounts_cannot_hold(install: ModuleType, tmp_path: Path) -> None:
    """Any account could, and an upgrade waited for it without a word."""
    for part in (tmp_path, *tmp_path.parents[:3]):
        part.chmod(part.stat().st_mode | 0o755)
    first = _installation(tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    first.communicate("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    install.open_to_everybody(tmp_path)
    code = (
        "import pathlib, fcntl, sys\n"
        "for file in pathlib.Path(sys.argv[1]).rglob('*lock*'):\n"
        "    if file.is_file(): fcntl.flock(file.open(), fcntl.LOCK_EX); print('held', file)\n"
        "import os; os.listdir(sys.argv[1] + '/.install-lock')\n"
    )
    argv = ["/usr/bin/python3", "-I", "-c", code, str(tmp_path)]
    done = subprocess.run(argv, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False)
    assert "PermissionError" in done.stderr and not done.stdout
