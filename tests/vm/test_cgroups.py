"""Limits by cgroup v2 and the systemd unit, on a kernel and a systemd that have them: one boot of a virtual machine."""

from __future__ import annotations

import io
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.support import waiting
from tests.vm.harness import Guest, image

ROOT = Path(__file__).resolve().parents[2]
PREFIX = Path(sys.prefix)
OURS = ("identity", "mep", "mep_link", "mep_sdk", "mep_wire", "relay", "user_endpoint")
LEFT_OUT = ("pip", "mypy", "mypyc", "hypothesis", "pygments", "setuptools", "ruff", "librt", "_pytest", "parsl")
"""Big, and of no use to the programs there."""


def service_environment(target: Path) -> None:
    """Pack the service's environment with the project's packages in it, wherever this one has them from."""
    site = next(PREFIX.glob("lib/python3*/site-packages"))
    skipped = tuple(f"{site.relative_to('/')}/{name}" for name in LEFT_OUT)

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = entry.name
        if name.startswith(skipped) or "mypyc" in name or name.endswith(("mep-dev.pth", "/ruff")):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        return entry

    with tarfile.open(target, "w") as archive:
        archive.add(PREFIX, PREFIX.relative_to("/"), filter=wanted)
        for name in OURS:
            if not (site / name).is_dir():
                archive.add(ROOT / name, (site / name).relative_to("/"), filter=wanted)
        commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        for name, entry in commands.items():
            if not (PREFIX / "bin" / name).exists():
                module, _, function = entry.partition(":")
                text = f"#!{PREFIX}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
                _add_text(archive, PREFIX / "bin" / name, text)


def _add_text(archive: tarfile.TarFile, path: Path, text: str) -> None:
    entry = tarfile.TarInfo(str(path.relative_to("/")))
    entry.size, entry.mode = len(text.encode()), 0o755
    archive.addfile(entry, io.BytesIO(text.encode()))


def script() -> str:
    """The guest's script: put everything in place, then run guest_cgroups.py."""
    return "\n".join(
        [
            "set -e",
            "tar -xf /guest/environment.tar -C /",
            f"mkdir -p /opt; test -e /opt/mep || ln -s {PREFIX} /opt/mep",  # where the unit has it
            f"chmod -R a+rX {PREFIX}",
            "PYTHONDONTWRITEBYTECODE= exec /opt/mep/bin/python -I /guest/guest_cgroups.py",
        ]
    )


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_limits_and_the_unit(tmp_path: Path) -> None:
    environment = tmp_path / "environment.tar"
    service_environment(environment)
    files = {
        environment: "guest/environment.tar",
        Path(__file__).with_name("guest_cgroups.py"): "guest/guest_cgroups.py",
        Path(waiting.__file__): "guest/waiting.py",
        ROOT / "systemd" / "mep@.service": "etc/systemd/system/mep@.service",
    }
    result = Guest(image()).run(script(), files, timeout_s=900)
    print(result.log)
    for name in ("journal", "ueps"):
        print(f"--- {name}\n{result.files.get(name, b'').decode(errors='replace')}")
    assert result.status == 0, result.console[-4000:]
    assert result.log.count("PASSED") == 17
