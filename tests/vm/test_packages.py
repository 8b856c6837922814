"""The packages: built twice offline with the same bytes, then installed, upgraded and purged on a booted Debian."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support import package_builds, waiting
from tests.support.package_builds import ROOT
from tests.vm.harness import Guest, image

GUEST_FILES = ("guest_packages.py", "guest_load.py", "guest_readme.py")
INSTALLED = ("common", "endpoint", "relay", "sdk", "postgresql")
SCRIPT = """\
export PYTHONDONTWRITEBYTECODE=1
if [ -e /guest/rebooted ]; then
    exec /usr/bin/python3 /guest/guest_packages.py second
fi
touch /guest/rebooted
/usr/bin/python3 /guest/guest_packages.py first > /guest/out/first 2>&1 || exit 1
systemctl reboot
sleep 600
"""

pytestmark = [pytest.mark.root, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The packages as release 1 and 2 of the same version."""
    return {number: package_builds.built(tmp_path_factory, release=number) for number in ("1", "2")}


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_same_sources_give_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "place"
    elsewhere.mkdir(parents=True)
    (elsewhere / "wheelhouse").symlink_to(package_builds.wheelhouse() / "wheelhouse")
    environment = os.umask(0o077)
    try:
        package_builds.build(elsewhere, tmp_path / "out", "--release", "1")
    finally:
        os.umask(environment)
    assert names(tmp_path / "out") == names(built["1"])
    assert (tmp_path / "out" / "SHA256SUMS").read_text() == (built["1"] / "SHA256SUMS").read_text()
    kinds = [name.rpartition(".")[2] for name in names(built["1"])]
    assert (kinds.count("deb"), kinds.count("rpm"), kinds.count("whl"), kinds.count("gz")) == (7, 7, 3, 1)


def test_the_packages_on_a_booted_system(built: dict[str, Path], tmp_path: Path) -> None:
    commands = tmp_path / "commands"
    commands.write_text("\n".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]))
    files = {
        deb: f"guest/{number}/{deb.name}"
        for number, out in built.items()
        for each in INSTALLED
        for deb in out.glob(f"mep-{each}_*.deb")
    }
    files |= {Path(__file__).with_name(name): f"guest/{name}" for name in GUEST_FILES}
    files |= {Path(waiting.__file__): "guest/waiting.py", commands: "guest/commands"}
    files[ROOT / "README.md"] = "guest/README.md"
    result = Guest(image(), reboots=True).run(SCRIPT, files, timeout_s=2000)
    before = result.files.get("first", b"").decode(errors="replace")
    print(before, result.log, sep="\n")
    for name, content in sorted(result.files.items()):
        if name != "first":
            print(f"--- {name}\n{content.decode(errors='replace')[-6000:]}")
    assert result.status == 0, before[-4000:] + result.log[-4000:] + result.console[-2000:]
    assert (before + result.log).count("PASSED") == 15


# --- .rpm -------------------------------------------------------------------------------------------------

IN_USERLAND = """\
set -eu
top=$1 old=$2 new=$3
packages="mep-common mep-endpoint mep-relay mep-sdk mep-postgresql mep-s3 mep-kubernetes"
mount -t tmpfs tmpfs "$top"
mkdir "$top/up" "$top/work" "$top/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$top/up",workdir="$top/work" "$top/root"
root=$top/root
mount -t tmpfs tmpfs "$root/opt"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
rm -f "$root/etc/pam.d/mep"
rpm --root "$root" --initdb
rpm --root "$root" -i --nodeps "$old"/*.rpm
echo "installed $(readlink "$root/opt/mep/current")"
rpm --root "$root" -V --nodeps $packages
chroot "$root" mep --version
chroot "$root" mep-relay --version
chroot "$root" mep-sdk --version
chroot "$root" /opt/mep-sdk/bin/python -I -c 'import mep_sdk; print("sdk", mep_sdk.__name__)'
chroot "$root" /opt/mep/bin/python -I -c 'import psycopg, boto3, kubernetes; print("extras", psycopg.__file__)'
grep -q password-auth "$root/etc/pam.d/mep"
for file in /etc/logrotate.d/mep /etc/mep-relay.toml; do
    rpm --root "$root" -q --configfiles mep-endpoint mep-relay | grep -x "$file"
    echo "# kept" >> "$root$file"
done
rpm --root "$root" -U --nodeps "$new"/*.rpm
echo "upgraded $(readlink "$root/opt/mep/current"), $(ls "$root/opt/mep/releases" | wc -l) release"
grep -q "# kept" "$root/etc/logrotate.d/mep"
grep -q "# kept" "$root/etc/mep-relay.toml"
chroot "$root" mep --version
rpm --root "$root" -e --nodeps $packages
ls -d "$root"/opt/* "$root/usr/lib/mep" "$root/usr/bin/mep" 2>/dev/null || echo "nothing is left"
"""


def test_the_rpm_packages_in_an_overlay_of_this_system(built: dict[str, Path], tmp_path: Path) -> None:
    """By rpm itself, with its database and scripts; only the distribution around it is no RPM distribution."""
    argv = ["unshare", "--mount", "sh", "-c", IN_USERLAND, "sh", str(tmp_path), str(built["1"]), str(built["2"])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    print(done.stdout + done.stderr)
    assert any(line.startswith("extras /opt/mep/extras/postgresql/") for line in lines), lines
    versions = [line for line in lines if "version" in line]
    assert len(versions) == 3, lines
    assert any(line.startswith("mep-sdk ") for line in lines), lines
    assert re.match(r"installed releases/[\d.]+-1\.py\d+-[0-9a-f]{12}$", lines[0]), lines
    assert any(re.match(r"upgraded releases/[\d.]+-2\.py\d+-[0-9a-f]{12}, 1 release$", line) for line in lines), lines
    assert lines[-1] == "nothing is left", lines


def test_rpmlint_finds_nothing(built: dict[str, Path]) -> None:
    rpms = sorted(map(str, built["1"].glob("*.rpm")))
    argv = ["rpmlint", "-c", str(ROOT / "packaging/rpmlint.toml"), *rpms]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600)
    print(done.stdout + done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 packages and 0 specfiles checked; 0 errors, 0 warnings" in done.stdout


def test_an_rpm_requires_the_pythons_abi_and_its_own_parts(built: dict[str, Path]) -> None:
    def requires(name: str) -> set[str]:
        (path,) = built["1"].glob(f"{name}-*.rpm")
        done = subprocess.run(["rpm", "-qp", "--requires", str(path)], capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines())

    version = "{}.{}".format(*sys.version_info)
    assert {f"python(abi) = {version}", f"/usr/bin/python{version}", "libpam.so.0()(64bit)"} <= requires("mep-common")
    for name in ("mep-endpoint", "mep-relay", "mep-postgresql", "mep-s3", "mep-kubernetes"):
        assert any(line.startswith("mep-common = ") for line in requires(name))
