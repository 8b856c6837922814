"""Sets a module up once it is imported, at no cost to a process that never imports it.

Called by data_proxystore in scripts and by task_main in workers. Standard library only.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any


def when_imported(name: str, set_up: Callable[[Any], None]) -> None:
    """Call `set_up` with the module of this name: now, or when it has been imported. The same call counts once."""
    loaded = sys.modules.get(name)
    if loaded is not None:
        set_up(loaded)
    elif not any(isinstance(each, _Finder) and each.waits_for == (name, set_up) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, set_up))


class _Finder:
    """Waits for the import of one module."""

    def __init__(self, name: str, set_up: Callable[[Any], None]) -> None:
        self.waits_for = name, set_up

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the module's own spec with a loader that sets it up; None for every other module."""
        awaited, set_up = self.waits_for
        if name != awaited:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((each for each in found if each is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: types.ModuleType) -> None:
                execute(module)
                set_up(module)

            loader.exec_module = exec_module
        return spec
