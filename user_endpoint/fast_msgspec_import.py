"""Imported first: lets msgspec load without typing_extensions.

msgspec takes only names from it that Python's own typing has had since 3.11, and does without it if it can't be
imported. It imports inspect, ast, dis and tokenize: 10 ms of each start and 2 MB of each user endpoint.
"""

from __future__ import annotations

import sys
from typing import Any

_NAME = "typing_extensions"
_modules: dict[str, Any] = sys.modules

if _NAME not in _modules and "msgspec" not in _modules:
    _modules[_NAME] = None  # an import of it raises ImportError
    try:
        import msgspec  # noqa: F401
    finally:
        del _modules[_NAME]  # others may import it
