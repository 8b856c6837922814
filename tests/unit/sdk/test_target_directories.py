"""What `pip install --target` puts into a directory is installed there; the person's own modules beside it are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from mep_sdk import importable


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theirs_installed" / "sub").mkdir(parents=True)
    for name in ("theirs_installed/__init__.py", "theirs_installed/sub/__init__.py", "theirs_installed/sub/deep.py"):
        (tmp_path / name).write_text("VALUE = 1\n")
    (tmp_path / "their_single.py").write_text("VALUE = 1\n")
    (tmp_path / "my_own_module.py").write_text("VALUE = 1\n")
    record = tmp_path / "theirs_installed-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("theirs_installed/__init__.py,sha256=x,9\nmy.txt,,\ntheir_single.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("theirs_installed", False),
        ("theirs_installed.sub", False),
        ("theirs_installed.sub.deep", False),
        ("their_single", False),
        ("my_own_module", True),
    ],
)
def test_which_modules_are_ones_own(target: Path, name: str, local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = __import__(name, fromlist=["VALUE"])
    assert importable.is_local(module) is local


def test_functions_travel_where_cloudpickle_is_on_pythonpath(tmp_path: Path) -> None:
    """As a module that is not installed it would be sent by value itself, which never ends."""
    (tmp_path / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import cloudpickle
assert cloudpickle.__file__.startswith({str(tmp_path)!r})
from mep_sdk.serialize import load_arguments, serialize_arguments
def mine(value):
    return value + 1
(got,), _ = load_arguments(serialize_arguments((mine,), {{}}))
print(got(1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "2\n", done.stderr
