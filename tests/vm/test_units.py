"""The shipped systemd files on a real systemd: accounts, directories, and the relay in its sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import waiting
from tests.vm.harness import Guest, image
from tests.vm.test_cgroups import PREFIX, ROOT, service_environment

SYSTEMD = ROOT / "systemd"


def script() -> str:
    """The guest's script: put everything in place, then run guest_units.py."""
    return "\n".join(
        [
            "set -e",
            "tar -xf /guest/environment.tar -C /",
            f"mkdir -p /opt; test -e /opt/mep || ln -s {PREFIX} /opt/mep",  # where the units have it
            f"chmod -R a+rX {PREFIX}",
            "PYTHONDONTWRITEBYTECODE= exec /opt/mep/bin/python -I /guest/guest_units.py",
        ]
    )


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_units_accounts_and_directories(tmp_path: Path) -> None:
    environment = tmp_path / "environment.tar"
    service_environment(environment)
    files = {
        environment: "guest/environment.tar",
        Path(__file__).with_name("guest_units.py"): "guest/guest_units.py",
        Path(waiting.__file__): "guest/waiting.py",
        SYSTEMD / "mep@.service": "etc/systemd/system/mep@.service",
        SYSTEMD / "mep-relay.service": "etc/systemd/system/mep-relay.service",
        SYSTEMD / "sysusers.d" / "mep.conf": "etc/sysusers.d/mep.conf",
        SYSTEMD / "tmpfiles.d" / "mep.conf": "etc/tmpfiles.d/mep.conf",
    }
    result = Guest(image()).run(script(), files, timeout_s=900)
    print(result.log)
    assert result.status == 0, result.log[-4000:] + result.console[-2000:]
    assert result.log.count("PASSED") == 8
