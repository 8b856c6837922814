"""What a person's SDK says of their Python: for templates, and for their user endpoint's environment."""

from __future__ import annotations

from typing import Any

import pytest

from mep.config.template_bundle import own_environment
from mep_sdk.batch import user_runtime
from mep_wire.bundle import UepBundle
from user_endpoint.runtime import completed_runtime, start_environment

GLOBUS = {"globus_compute_sdk_version": "4.19.0", "python": {"version": "3.12.4"}, "python_version": "3.12.4 (main)"}


def environment(runtime: Any, site: dict[str, str] | None = None, own: dict[str, str] | None = None) -> dict[str, str]:
    bundle = UepBundle(
        endpoint_id="", endpoint_name="", relay_link_address="", relay_link_key=b"", template_name="", templates={},
        schema=None, user_environment=site or {}, parent_config={}, own_environment=own or {},
    )  # fmt: skip
    return start_environment(bundle, {"HOME": "/h/a", "PATH": "/usr/bin"}, runtime)


def test_versions_of_globus_computes_sdk_are_passed_on() -> None:
    found = environment(GLOBUS)
    assert (found["GC_USER_PYTHON_VERSION"], found["GC_USER_SDK_VERSION"]) == ("3.12.4", "4.19.0")


def test_this_sdk_names_its_python_alone() -> None:
    found, runtime = environment(user_runtime()), user_runtime()
    assert found["GC_USER_PYTHON_VERSION"] == runtime["python_version"]
    assert "GC_USER_SDK_VERSION" not in found
    python = completed_runtime(runtime)["python"]
    assert python["version_description"] == f"{runtime['python_version']} ({runtime['python_implementation']})"
    assert ".".join(map(str, python["version_tuple"])) == runtime["python_version"]


@pytest.mark.parametrize(
    "version", ["3.1 -x", "$(id)", "a\nb", "", "x" * 65, "\ud800", None, 3, ["3"], {}, "-3", "3;id", "3\0"]
)
def test_what_is_no_version_is_not_passed_on(version: Any) -> None:
    runtime = {"python": {"version": version}, "globus_compute_sdk_version": version}
    assert environment(runtime) == {"HOME": "/h/a", "PATH": "/usr/bin"}


@pytest.mark.parametrize("runtime", [{"python": 3}, {"python": None}, {"python_version": 3}, {"python_version": "²"}])
def test_an_odd_runtime_is_no_error(runtime: Any) -> None:
    completed_runtime(runtime)
    environment(runtime)


def test_nothing_that_is_set_is_overridden() -> None:
    own = {"PATH": "/own", "OMP_NUM_THREADS": "2", "X": "1", "GC_USER_PYTHON_VERSION": "own"}
    found = environment(GLOBUS, {"X": "${HOME}/x", "GC_USER_SDK_VERSION": "site"}, own)
    assert found == {
        "HOME": "/h/a", "PATH": "/usr/bin", "OMP_NUM_THREADS": "2", "X": "/h/a/x",
        "GC_USER_SDK_VERSION": "site", "GC_USER_PYTHON_VERSION": "own",
    }  # fmt: skip


def test_tokens_and_variables_of_one_process_stay_behind() -> None:
    given = {
        "CONDA_PREFIX": "/conda", "MEP_TOKEN": "t", "MEP_ETC": "/e", "_MEP_COMPLETE": "x", "NOTIFY_SOCKET": "/n",
        "LISTEN_FDS": "1", "INVOCATION_ID": "i", "_": "/usr/bin/mep", "SHLVL": "2", "PWD": "/", "PWDX": "kept",
        "BASH_FUNC_ml%%": "() { :; }", "BAD": "\udcff",
    }  # fmt: skip
    assert own_environment(given) == {"CONDA_PREFIX": "/conda", "PWDX": "kept"}
