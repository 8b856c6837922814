"""Globus Compute's SDK by name, and MEP's by content: scripts written for it run with their import lines unchanged.

The package mep-globus-compute installs it, and never beside the SDK of that name, which has the same files.
"""

from __future__ import annotations

from importlib import metadata

from mep_sdk import importable


def _refuse_beside_the_other() -> None:
    try:
        found = metadata.version("globus-compute-sdk")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"globus-compute-sdk {found} and mep-globus-compute are both installed here, and both are the module "
        "globus_compute_sdk. Remove them with `pip uninstall globus-compute-sdk mep-globus-compute`, and install the "
        "one that you want: mep-globus-compute for sites that run MEP, globus-compute-sdk for Globus's own service."
    )


_refuse_beside_the_other()
importable.lacking.add(__name__)

from globus_compute_sdk.sdk.client import Client  # noqa: E402 - not before the check
from globus_compute_sdk.sdk.executor import Executor  # noqa: E402
from globus_compute_sdk.sdk.mpi_function import MPIFunction  # noqa: E402
from globus_compute_sdk.sdk.shell_function import ShellFunction, ShellResult  # noqa: E402
from globus_compute_sdk.version import __version__ as __version__  # noqa: E402

__all__ = ("Client", "Executor", "MPIFunction", "ShellFunction", "ShellResult")
