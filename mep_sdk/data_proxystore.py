"""Has ProxyStore store by value what belongs to the script or to modules beside it, as tasks take it.

ProxyStore 1.x pickles a value by name where that is possible. In the script it always is for the script's own classes,
and the worker, which has another `__main__`, cannot load them. So its two pickling serializers are given our picklers:
the first refuses such values, ProxyStore then takes the second, and that writes what any cloudpickle reads. All other
values are stored as they were, and nothing changes for a script that does not import ProxyStore.

`install` is called when mep_sdk.client is imported. Standard library only.
"""

from __future__ import annotations

from typing import Any

from mep_sdk.when_imported import when_imported

_SERIALIZE = "proxystore.serialize"
_PICKLE, _CLOUDPICKLE = b"PK", b"CP"


def install() -> None:
    """Set ProxyStore up, now or when it is imported."""
    when_imported(_SERIALIZE, set_up)


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
