"""Packages for another Python than the running one, on a booted Debian 13: the README's first screen, as it stands."""

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


def test_the_first_screen_on_debian_13(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The packages for Python 3.13 are built by another Python, and write their byte code at the site."""
    built = package_builds.built(tmp_path_factory, python="3.13")
    root = debian.system("trixie", (*debian.BOOTED, *NEEDED))
    files = debs(built) | {
        HERE / "guest_first_screen.py": "guest_first_screen.py",
        VM / "guest_readme.py": "guest_readme.py",
        Path(waiting.__file__): "waiting.py",
        package_builds.ROOT / "README.md": "README.md",
        next(built.glob("mep_globus_compute-*.whl")): "drop_in.whl",
    }
    result = debian.boot(root, "exec /usr/bin/python3 /guest/guest_first_screen.py", files, tmp_path)
    print(shown(result))
    assert result.status == 0, result.log[-4000:]
    assert result.log.count("PASSED") == 9
    assert "over Python 3.13" in result.log
