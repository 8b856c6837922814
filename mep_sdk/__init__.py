"""MEP's SDK: researchers import it to run functions on a site's machines.

It runs in a person's script, and its task runner in workers. It trusts the relay that the script names, and data only
from the person's own tasks. `user_endpoint` may import the task runner and the serializers.

`from mep_sdk import Executor, Client, TaskFailed`: every public error is here as well. Names are loaded when they are
first asked for, so that a worker which needs only the task runner imports nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mep_sdk.version import __version__ as __version__

if TYPE_CHECKING:
    from mep_sdk.client import Client
    from mep_sdk.compute_serializer import ComputeSerializer
    from mep_sdk.errors import *  # noqa: F403 - every public error
    from mep_sdk.executor import Executor
    from mep_sdk.futures import TaskFuture
    from mep_sdk.shell import MPIFunction, ShellFunction, ShellResult
    from mep_wire.errors import *  # noqa: F403

__all__ = ["Client", "ComputeSerializer", "Executor", "MPIFunction", "ShellFunction", "ShellResult", "TaskFuture"]

_HOMES = {
    "Client": "mep_sdk.client",
    "ComputeSerializer": "mep_sdk.compute_serializer",
    "Executor": "mep_sdk.executor",
    "MPIFunction": "mep_sdk.shell",
    "ShellFunction": "mep_sdk.shell",
    "ShellResult": "mep_sdk.shell",
    "TaskFuture": "mep_sdk.futures",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is not None:
        return getattr(importlib.import_module(home), name)
    if name[:1].isupper():  # every public error: those of the SDK, of the relay and of endpoints
        from mep_sdk import errors

        if name in errors.public():
            return errors.public()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from mep_sdk import errors

    return sorted([*globals(), *__all__, *errors.public()])
