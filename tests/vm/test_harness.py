"""The virtual machine itself: it has the features that its tests need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.harness import Guest, image


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_a_guest_has_cgroup_v2_with_controllers_and_systemd(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    sent.write_text("from the host")
    script = "cat /sys/fs/cgroup/cgroup.controllers; systemctl show -p Version; cp /guest/sent /guest/out/back; exit 7"
    result = Guest(image()).run(script, {sent: "guest/sent"})
    assert result.status == 7, result.console[-2000:]
    assert {"cpu", "memory", "pids", "io"} <= set(result.log.split())
    assert "Version=" in result.log
    assert result.files["back"] == b"from the host"
