"""A person's own endpoint under the person's own service manager, on a real systemd: one boot of a virtual machine."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.vm.harness import Guest, image
from tests.vm.test_logind import ROOT, TREE, without_caches

SCRIPT = """\
set -e
mkdir /srv/tree && tar -xf /guest/tree.tar -C /srv/tree
echo /srv/tree > /usr/lib/python3/dist-packages/mep-tree.pth
exec /usr/bin/python3 /guest/guest_user_scope.py
"""


@pytest.mark.root
@pytest.mark.timeout(1800)
def test_a_process_in_another_pid_namespace_ends_with_the_endpoint(tmp_path: Path) -> None:
    tree = tmp_path / "tree.tar"
    with tarfile.open(tree, "w") as archive:
        for name in TREE:
            if (ROOT / name).exists():
                archive.add(ROOT / name, name, filter=without_caches)
    files = {tree: "guest/tree.tar", Path(__file__).with_name("guest_user_scope.py"): "guest/guest_user_scope.py"}
    result = Guest(image(("dbus-user-session",))).run(SCRIPT, files, timeout_s=600)
    print(result.log)
    print(f"--- journal\n{result.files.get('journal', b'').decode(errors='replace')}")
    assert result.status == 0, result.console[-4000:]
    assert result.log.count("PASSED") == 5
