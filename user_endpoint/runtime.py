"""What a person's SDK says of their Python, for templates and for the environment of their user endpoint.

`user_runtime` is a person's and is checked nowhere before: nothing here may fail on an odd value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mep_wire.bundle import UepBundle, expanded

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+!_-]{0,63}")
"""A version: nothing that a shell would take for more than one word."""


def completed_runtime(runtime: Mapping[str, Any]) -> dict[str, Any]:
    """Return `runtime` with `python`, as Globus Compute's SDK says it. MEP's tells major and minor version alone."""
    version = runtime.get("python_version")
    if "python" in runtime or not isinstance(version, str):
        return dict(runtime)
    kind = runtime.get("python_implementation")
    parts = [int(part) for part in version.split(".") if part.isdecimal() and len(part) < 9]
    python = {
        "version": version,
        "version_description": f"{version} ({kind})" if isinstance(kind, str) else version,
        "version_tuple": parts,
        "version_info": parts,
        "implementation": kind if isinstance(kind, str) else "",
    }
    return {**runtime, "python": python}


def start_environment(bundle: UepBundle, environment: Mapping[str, str], runtime: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a user endpoint that was started with `environment`.

    user_environment.yaml decides over all else. The start of one's own endpoint and `user_runtime` only add.
    """
    decided = {**environment, **expanded(bundle.user_environment, environment)}
    return {**_versions(runtime), **bundle.own_environment, **decided}


def _versions(runtime: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables in which Globus Compute passes on the versions of a person's Python and SDK."""
    python = completed_runtime(runtime).get("python")
    version = python.get("version") if isinstance(python, Mapping) else None
    found = {"GC_USER_PYTHON_VERSION": version, "GC_USER_SDK_VERSION": runtime.get("globus_compute_sdk_version")}
    return {name: value for name, value in found.items() if isinstance(value, str) and _VERSION.fullmatch(value)}
