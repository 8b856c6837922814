"""Imported first: lets dataclasses load without inspect, which it needs only for a class that has no docstring.

inspect imports ast, dis and tokenize: 1.3 MB and 6 ms of a root process that lives for long. Until an attribute of it
is wanted, a module of its name stands for it inside dataclasses. Standard library only.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

_NAME = "inspect"


class _Lazy(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(_NAME), name)


if _NAME not in sys.modules and "dataclasses" not in sys.modules:
    sys.modules[_NAME] = _Lazy(_NAME)
    try:
        import dataclasses  # noqa: F401
    finally:
        del sys.modules[_NAME]  # others import the module itself
