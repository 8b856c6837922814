"""The list of Globus Compute's public names is that of the package itself, installed into an environment of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LISTED = json.loads((ROOT / "docs" / "globus_compute_api.json").read_text())


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("peer") / "env"
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    subprocess.run([base, "-m", "venv", made], check=True)
    words = ["-m", "pip", "install", "-q", "--disable-pip-version-check", f"globus-compute-sdk=={LISTED['version']}"]
    installed = subprocess.run([made / "bin/python", "-I", *words], capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    return made / "bin" / "python"


def test_the_list_is_the_packages(peer: Path) -> None:
    script = ROOT / "docs" / "globus_compute_api.py"
    ran = subprocess.run([peer, script], capture_output=True, text=True, check=True, timeout=100)
    assert json.loads(ran.stdout) == LISTED
