"""The module `__main__` of a task's process, and how multiprocessing gets the script's functions to its processes.

A task's functions and classes come from the person's script, which is not here: they cannot be imported by name.
multiprocessing pickles by name. `install` lets it pickle by value what cannot be found by its name; it costs nothing
until a task imports multiprocessing. The processes that spawn and forkserver start import the parent's `__main__`
by its path. They would run the user endpoint; they find this file instead, which does the same for them.

Called at the start of each process that runs tasks. Standard library, and cloudpickle where it is needed.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from mep_sdk.when_imported import when_imported

_REDUCTION = "multiprocessing.reduction"


def install() -> None:
    """Make this process's `__main__` a task's."""
    main: Any = types.ModuleType("__main__")
    main.__file__ = __file__
    sys.modules["__main__"] = main
    sys.orig_argv = [sys.executable]
    when_imported(_REDUCTION, _set_up)


def _set_up(reduction: Any) -> None:
    reduction.ForkingPickler.reducer_override = _reduce


def _reduce(_pickler: Any, value: Any) -> Any:
    """Return how to pickle `value`: by value, where a class or function has no name to be found by."""
    if not isinstance(value, types.FunctionType | type) or _is_found_by_name(value):
        return NotImplemented
    import cloudpickle

    return cloudpickle.loads, (cloudpickle.dumps(value),)


def _is_found_by_name(value: Any) -> bool:
    found = sys.modules.get(getattr(value, "__module__", None) or "")
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value


if __name__ == "__mp_main__":
    when_imported(_REDUCTION, _set_up)
