"""The installer: which interpreters it takes, what it says otherwise, and that it does nothing twice."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


def test_every_requirement_is_pinned(install: ModuleType) -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in install.CONSTRAINTS.read_text().splitlines()
    }
    needed = {name.split(">")[0].split("[")[0].strip().lower().replace("_", "-") for name in install.requirements()}
    assert needed <= pinned


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
