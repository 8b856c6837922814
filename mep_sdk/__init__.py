"""MEP's SDK: researchers import it to run functions on a site's machines.

It runs in a person's script, and its task runner in workers. It trusts the relay that the script names, and data only
from the person's own tasks. `user_endpoint` may import the task runner and the serializers.

`from mep_sdk import Executor, Client`. Names are loaded when first asked for, so that a worker which needs only
the task runner imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mep_sdk.version import __version__ as __version__

if TYPE_CHECKING:
    from mep_sdk.client import Client
    from mep_sdk.executor import Executor
    from mep_sdk.shell import MPIFunction, ShellFunction, ShellResult
    from mep_sdk.strategies import ComputeSerializer

__all__ = ["Client", "ComputeSerializer", "Executor", "MPIFunction", "ShellFunction", "ShellResult"]

_HOMES = {
    "Client": "mep_sdk.client",
    "ComputeSerializer": "mep_sdk.strategies",
    "Executor": "mep_sdk.executor",
    "MPIFunction": "mep_sdk.shell",
    "ShellFunction": "mep_sdk.shell",
    "ShellResult": "mep_sdk.shell",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
