"""Import the parts of Parsl that an engine needs, in 50 ms instead of 350.

`import parsl` loads every executor and provider, HTTP libraries and asyncio. Here its packages are made
without running their `__init__`, which runs as soon as anything asks a package for a name that is not a
submodule: nothing behaves differently, it only happens later or never. Used in the user endpoint and in the
interchange, never where a person's function runs: that may want Parsl itself.
"""

from __future__ import annotations

import importlib
import sys
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_PACKAGES = frozenset(
    {
        "parsl",
        "parsl.app",
        "parsl.data_provider",
        "parsl.executors",
        "parsl.executors.high_throughput",
        "parsl.jobs",
        "parsl.monitoring",
        "parsl.monitoring.radios",
        "parsl.providers",
        "dill",  # parsl.serialize names it for functions; those that go through here are bytes already
        "psutil",  # parsl.addresses asks it for this host's addresses
        "requests",  # parsl.addresses asks a public service for an address with it; nothing here does
    }
)
_HOMES = {
    ("parsl.providers", "LocalProvider"): "parsl.providers.local.local",
    ("parsl.providers", "SlurmProvider"): "parsl.providers.slurm.slurm",
    ("parsl.providers", "PBSProProvider"): "parsl.providers.pbspro.pbspro",
}


class _LatePackage(ModuleType):
    """A package before its own code has run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        home = _HOMES.get((self.__name__, name))
        if home is not None:
            return getattr(importlib.import_module(home), name)
        if PathFinder.find_spec(f"{self.__name__}.{name}", self.__path__) is not None:
            return importlib.import_module(f"{self.__name__}.{name}")
        spec = self.__spec__
        if type(self) is not _LatePackage or spec is None or not isinstance(spec.loader, _LateLoader):
            raise AttributeError(name)
        self.__class__ = ModuleType  # from here on it is an ordinary module
        spec.loader.real.exec_module(self)
        return getattr(self, name)


class _LateLoader:
    def __init__(self, real: Any) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _LatePackage(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Put off."""


class _LateFinder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            spec.loader = _LateLoader(spec.loader)  # type: ignore[assignment] # has what the import system calls
        return spec


_NONE_YET = _LatePackage("none yet")


def _untouched(function: Any = None, **_: Any) -> Any:
    return function if function is not None else _untouched


@contextmanager
def light_parsl(authenticator: Any = None) -> Iterator[None]:
    """Within this, Parsl's modules can be imported one by one. Does nothing where Parsl as a whole is imported already.

    `authenticator` is used in place of ZeroMQ's own ThreadAuthenticator; only the interchange needs one.
    """
    if type(sys.modules.get("parsl", _NONE_YET)) is not _LatePackage:
        yield
        return
    finder = _LateFinder()
    stand_ins: dict[str, dict[str, Any]] = {
        "typeguard": {"typechecked": _untouched},  # its import and its rewriting of functions cost 50 ms
        "typing_extensions": vars(typing),  # Parsl takes only names from it that typing has had since 3.11
        "zmq.auth.thread": {"ThreadAuthenticator": authenticator},  # the real one imports asyncio
    }
    made = {name: ModuleType(name) for name in stand_ins if name not in sys.modules}
    for name, module in made.items():
        vars(module).update({key: value for key, value in stand_ins[name].items() if not key.startswith("__")})
    sys.meta_path.insert(0, finder)
    sys.modules.update(made)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in made:
            del sys.modules[name]
