"""Has ProxyStore store by value what belongs to the script or to modules beside it, as tasks take it.

ProxyStore 1.x pickles a value by name where that is possible. In the script it always is for the script's own classes,
and the worker, which has another `__main__`, cannot load them. So its two pickling serializers are given our picklers:
the first refuses such values, ProxyStore then takes the second, and that writes what any cloudpickle reads. All other
values are stored as they were, and nothing changes for a script that does not import ProxyStore.

`install` is called when mep_sdk.client is imported. Standard library only.
"""

from __future__ import annotations

import sys
import types
from typing import Any

_SERIALIZE = "proxystore.serialize"
_PICKLE, _CLOUDPICKLE = b"PK", b"CP"


def install() -> None:
    """Set ProxyStore up, now or when it is imported."""
    loaded = sys.modules.get(_SERIALIZE)
    if loaded is not None:
        set_up(loaded)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Waits for the import of ProxyStore's serializers."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return the module's own spec with a loader that sets it up; None for every other module."""
        if name != _SERIALIZE:
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


def set_up(module: Any) -> None:
    """Give ProxyStore's serializers our picklers. A version that has no such serializers stays as it is."""
    known = getattr(module, "_SERIALIZERS", {})
    for identifier, serialize in ((_PICKLE, _plain), (_CLOUDPICKLE, _by_value)):
        if identifier in known:
            known[identifier].serialize = serialize


def _plain(obj: Any, buffer: Any) -> None:
    from mep_sdk import encoding

    encoding.plain_pickler(buffer).dump(obj)


def _by_value(obj: Any, buffer: Any) -> None:
    from mep_sdk import encoding

    encoding.dump_by_value(obj, buffer)
