"""Packages for another Python than the running one, on a booted Debian 13.

The README's first screen as it stands, and the endpoint's log in journald.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import debian, package_builds, waiting
from tests.vm.harness import GuestResult

HERE = Path(__file__).parent
VM = HERE.with_name("vm")
EXTRAS = ("kubernetes", "postgresql", "s3")
NEEDED = ("libpam0g", "passwd")

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


def shown(result: GuestResult) -> str:
    """Return everything that the guest said."""
    files = "".join(f"--- {name}\n{content.decode(errors='replace')[-6000:]}" for name, content in result.files.items())
    return f"{result.log}\n{files}\n--- console\n{result.console[-2000:]}"


def debs(built: Path) -> dict[Path, str]:
    """Return where the guest has the .deb files: extras in a directory of their own."""
    extras = {path for each in EXTRAS for path in built.glob(f"mep-{each}_*.deb")}
    assert len(extras) == len(EXTRAS)
    return {path: f"debs/{'extras/' if path in extras else ''}{path.name}" for path in built.glob("*.deb")}


def boot(script: str, work: Path, factory: pytest.TempPathFactory, *packages: str) -> GuestResult:
    """Run a script of this directory on a booted Debian 13 that has the packages' files."""
    built = package_builds.built(factory, python="3.13")
    files = debs(built) | {path: path.name for path in HERE.glob("guest_*.py")}
    files |= {
        VM / "guest_readme.py": "guest_readme.py",
        Path(waiting.__file__): "waiting.py",
        package_builds.ROOT / "README.md": "README.md",
        next(built.glob("mep_globus_compute-*.whl")): "drop_in.whl",
    }
    root = debian.system("trixie", (*debian.BOOTED, *NEEDED, *packages))
    result = debian.boot(root, f"exec /usr/bin/python3 /guest/{script}", files, work)
    print(shown(result))
    assert result.status == 0, result.log[-4000:]
    return result


def test_the_first_screen_on_debian_13(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The packages for Python 3.13 are built by another Python, and write their byte code at the site."""
    result = boot("guest_first_screen.py", tmp_path, tmp_path_factory)
    assert result.log.count("PASSED") == 10
    assert "over Python 3.13" in result.log


def test_the_log_in_a_real_journal(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = boot("guest_journal.py", tmp_path, tmp_path_factory, "libpam-systemd")
    assert result.log.count("PASSED") == 6
