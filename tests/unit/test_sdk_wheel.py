"""The requirements of the SDK's wheel."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mep_sdk_wheel", ROOT / "packaging" / "sdk_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_releases_that_passed_include_the_one_under_test(wheel: ModuleType) -> None:
    for name, tested in wheel.RACE_TESTED.items():
        assert version(name) in tested


def test_no_release_is_taken_whose_threads_were_not_tested(wheel: ModuleType) -> None:
    made = tomllib.loads(wheel.pyproject())["project"]
    needed = [*made["dependencies"], *made["optional-dependencies"]["worker"]]
    for name, tested in wheel.RACE_TESTED.items():
        (found,) = [each for each in needed if each.startswith(name)]
        assert found == f"{name}>={tested[0]},<={tested[-1]}"
