"""A person's own endpoint passes the environment of its start on to their functions, and overrides nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml
from sitekit.site import Site

from tests.support.campus import make_campus

NAMES = ("MEPTEST_OWN", "MEPTEST_BOTH", "MEP_TOKEN", "GC_USER_PYTHON_VERSION", "PATH", "HOME")


def variables(names: tuple[str, ...]) -> dict[str, Any]:
    import os

    return {name: os.environ.get(name) for name in names}


def test_the_environment_of_the_start_reaches_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    with make_campus("single", "laptop") as campus:
        path = f"/opt/meptest-own/bin:{os.environ['PATH']}"
        own = {"MEPTEST_OWN": "own", "MEPTEST_BOTH": "own", "MEP_TOKEN": "secret", "PATH": path}
        started_with = {**campus.site.env, **own}
        monkeypatch.setattr(Site, "env", property(lambda _: started_with))
        campus.endpoint.write("user_environment.yaml", yaml.safe_dump({"MEPTEST_BOTH": "site"}))
        campus.endpoint.start()
        with campus.executor(campus.anybody) as executor:
            seen = executor.submit(variables, NAMES).result(timeout=100)
    assert (seen["MEPTEST_OWN"], seen["MEPTEST_BOTH"], seen["MEP_TOKEN"]) == ("own", "site", None)
    assert "/opt/meptest-own/bin" in seen["PATH"].split(":")
    assert seen["GC_USER_PYTHON_VERSION"]
