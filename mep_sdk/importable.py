"""What the other side can import, and what must therefore travel by value. Used by encoding and by_value."""

from __future__ import annotations

import copyreg
import functools
import pickle
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mep_sdk import exception_values

if TYPE_CHECKING:
    from pathlib import Path

other_pythons: set[str] = set()
"""Other versions of Python that are known to be on the other side: code that goes there needs source text."""


class NotSerializable(Exception):
    """A value cannot be made into bytes; the text says why."""


def reduces_itself(kind: type) -> bool:
    """Return whether instances of a class say themselves how they are pickled, and perhaps by a name."""
    own: tuple[Any, Any] = (kind.__reduce_ex__, kind.__reduce__)
    return own[0] is not object.__reduce_ex__ or own[1] is not object.__reduce__ or kind in copyreg.dispatch_table


def own_reduction(obj: Any) -> Any:
    """Return what an object says of how it is pickled: a tuple, or its name in its module."""
    registered = copyreg.dispatch_table.get(type(obj))
    if registered is None and exception_values.needs_parts(type(obj)):
        return exception_values.make, (type(obj), *exception_values.parts(obj))
    return obj.__reduce_ex__(5) if registered is None else registered(obj)


def module_of(obj: Any, name: str) -> str:
    """Return the module in which pickle looks for an object of this name."""
    return str(pickle.whichmodule(obj, name))  # type: ignore[attr-defined]  # not in typeshed


def named_elsewhere(obj: Any, name: str, *, local: bool) -> bool:
    """Return whether an object is pickled by a name that the other side cannot look up, or finds another object by."""
    module = module_of(obj, name)
    if needs_value(module, local=local):
        return True
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not obj


def needs_value(module_name: str, *, local: bool) -> bool:
    """Return whether what belongs to this module must travel by value: the other side cannot import it.

    With `local`, modules that are not installed count among these.
    """
    if module_name in ("__main__", "__mp_main__"):
        return True
    module = sys.modules.get(module_name)
    if module is None:
        return True
    return local and is_local(module)


_OTHER_SIDE_HAS = frozenset({"mep_sdk", "mep_wire", "mep_link", "cloudpickle", "msgspec"})
"""Top-level names that every worker has: they are none of the person's own, even where they run from a checkout."""


lacking: set[str] = set()
"""Top-level names of installed packages that no worker has: what a script takes from them travels by value."""


@functools.cache
def _installed_under() -> tuple[str, ...]:
    import sysconfig  # only scripts list installed packages: workers are spared a megabyte
    from pathlib import Path

    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = {sysconfig.get_path(name) for name in names} | {getattr(sys, "_stdlib_dir", None)}
    return tuple(str(Path(path)) + "/" for path in paths if path)


@functools.cache
def _is_local_file(name: str, file: str) -> bool:
    top = name.partition(".")[0]
    if top in _OTHER_SIDE_HAS or top in lacking:
        return top in lacking
    parts = file.split("/")
    if file.startswith(_installed_under()) or "site-packages" in parts or "dist-packages" in parts:
        return False
    return top not in _installed_in(_root_of(name, file))


def _root_of(name: str, file: str) -> Path:
    """Return the directory, one of sys.path, from which a module of this name was imported."""
    from pathlib import Path  # as above

    path = Path(file)
    if path.name.startswith("__init__."):
        path = path.parent
    return path.parents[min(name.count("."), len(path.parents) - 1)]


@functools.cache
def _installed_in(root: Path) -> frozenset[str]:
    """Return the names of what pip has installed into a directory of its own, as `pip install --target` does."""
    found: set[str] = set()
    for record in root.glob("*.dist-info/RECORD"):
        try:
            lines = record.read_text("utf-8", "replace").splitlines()
        except OSError:
            continue
        found.update(line.partition(",")[0].partition("/")[0].partition(".")[0] for line in lines)
    return frozenset(found)


def is_local(module: ModuleType) -> bool:
    """Return whether a module was read from a file outside the standard library and installed packages."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return getattr(module, "__spec__", None) is None and module.__name__ not in sys.builtin_module_names
    return _is_local_file(module.__name__, file)


_seen_local: tuple[int, tuple[ModuleType, ...]] = (0, ())


def local_modules() -> tuple[ModuleType, ...]:
    """Return the imported modules that are local, `__main__` excepted (cloudpickle always takes that by value)."""
    global _seen_local
    count, found = _seen_local
    if count != len(sys.modules):
        loaded = list(sys.modules.copy().items())  # other threads import
        found = tuple(
            module
            for name, module in loaded
            if isinstance(module, ModuleType)
            and module.__name__ == name
            and name not in ("__main__", "__mp_main__")
            and is_local(module)
        )
        _seen_local = (len(loaded), found)
    return found
