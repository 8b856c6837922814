"""PAM sessions of logind's and limits on them, on a real systemd: one boot of a virtual machine."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.vm.harness import Guest, image

ROOT = Path(__file__).resolve().parents[2]
TREE = ("mep", "tests/__init__.py", "tests/support")


def script() -> str:
    """The guest's script: make the tree importable by its own Python (enough for the monitor), run guest_logind.py."""
    return "\n".join(
        [
            "set -e",
            "mkdir /srv/tree && tar -xf /guest/tree.tar -C /srv/tree",
            "echo /srv/tree > /usr/lib/python3/dist-packages/mep-tree.pth",
            "exec /usr/bin/python3 /guest/guest_logind.py",
        ]
    )


def without_caches(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave compiled files behind, and give the rest to root."""
    if "__pycache__" in entry.name:
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


@pytest.mark.root
@pytest.mark.timeout(1200)
def test_sessions_of_logind(tmp_path: Path) -> None:
    tree = tmp_path / "tree.tar"
    with tarfile.open(tree, "w") as archive:
        for name in TREE:
            if (ROOT / name).exists():
                archive.add(ROOT / name, name, filter=without_caches)
    files = {tree: "guest/tree.tar", Path(__file__).with_name("guest_logind.py"): "guest/guest_logind.py"}
    result = Guest(image()).run(script(), files, timeout_s=600)
    print(result.log)
    print(f"--- journal\n{result.files.get('journal', b'').decode(errors='replace')}")
    assert result.status == 0, result.console[-4000:]
    assert result.log.count("PASSED") == 14
