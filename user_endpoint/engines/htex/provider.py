"""From a template's `provider` and `launcher` mappings to Parsl's objects, and the addresses workers look at.

The keys are checked against the signature of the class that `type` names, before anything is started.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import socket
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

from mep_wire.errors import EndpointMisconfigured
from user_endpoint import inherited_state
from user_endpoint.engines.htex.parsl_import import light_parsl
from user_endpoint.engines.htex.script_paths import launcher_with_quoted_paths, with_quoted_paths
from user_endpoint.engines.htex.walltimes import STARTED_VARIABLE, seconds_of
from user_endpoint.settings import AddressSettings, GlobusComputeSettings, GlobusMPISettings, unknown_key_reason
from user_endpoint.worker_init import told
from user_endpoint.worker_staging import stage

with light_parsl():
    import parsl.addresses
    import parsl.launchers
    import parsl.launchers.base
    import parsl.providers
    import parsl.providers.base

_WORKER_PYTHON = """
MEP_PYTHON="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"; MEP_PYTHON="${MEP_PYTHON:+$MEP_PYTHON/bin/python}"; export MEP_PYTHON
"""
"""Added to worker_init: an environment that it has activated is the one in which tasks run."""


_NOTE_START = f"export {STARTED_VARIABLE}=$(date +%s)"
_ENFORCES_WALLTIME = frozenset(
    {"SlurmProvider", "PBSProProvider", "LSFProvider", "TorqueProvider", "GridEngineProvider"}
)
_OF_THIS_ACCOUNT = _ENFORCES_WALLTIME | {"LocalProvider", "CondorProvider"}
_RUN_ONCE = {"SlurmProvider": "#SBATCH --no-requeue", "PBSProProvider": "#PBS -r n", "TorqueProvider": "#PBS -r n"}
"""The option that keeps a scheduler from requeueing a job after its node died, which takes Slurm two minutes. The job's
tasks run in a new job instead. A template's own scheduler_options come after it and take precedence."""
_IN_MINUTES = frozenset({"SlurmProvider", "LSFProvider"})
"""Parsl gives these whole minutes, from HH:MM:SS and no other form; none at all mean no limit."""


class Plan:
    """A provider that can be made: its class and arguments have been checked, nothing has been run."""

    def __init__(self, settings: GlobusComputeSettings) -> None:
        """Raises EndpointMisconfigured for a provider, launcher, key or network interface that there is not."""
        options = dict(settings.provider)
        self._kind = _class_of(options.pop("type"), parsl.providers, parsl.providers.base.ExecutionProvider, "provider")
        launcher = options.pop("launcher", None)
        for key in ("nodes_per_block", "worker_init"):
            if getattr(settings, key) is not None:
                options.setdefault(key, getattr(settings, key))
        _check(self._kind, options, "engine.provider", besides="launcher")
        self._options = options
        self.block_walltime_s = self._walltime()
        """Seconds that the scheduler gives a block; None where there is no limit, or none that is known."""
        self._own_shell = bool(options.get("worker_init"))
        if self._own_shell:
            options["worker_init"] = told(options["worker_init"]) + _WORKER_PYTHON
        if self._kind.__name__ in _OF_THIS_ACCOUNT:
            before = inherited_state.as_shell()  # it has this process's otherwise, by way of the scheduler too
            if self.block_walltime_s is not None:
                before = f"{before}\n{_NOTE_START}"
            options["worker_init"] = f"{before}\n{options.get('worker_init', '')}"
        self._launcher: tuple[type, dict[str, Any]] | None = self._checked_launcher(launcher)
        self._is_mpi = isinstance(settings, GlobusMPISettings)
        self.name = self._kind.__name__
        self.is_local = self.name == "LocalProvider"
        self._in_container = settings.container_type is not None
        self.addresses = worker_addresses(settings, local=self.is_local)

    def expected_slots(self, settings: GlobusComputeSettings) -> int:
        """Return about how many tasks run at once when every block is up."""
        cores = self._options.get("cores_per_node") or len(os.sched_getaffinity(0))
        limits = [max(1, int(cores / settings.cores_per_worker))]
        if settings.max_workers_per_node:
            limits.append(settings.max_workers_per_node)
        accelerators = settings.available_accelerators
        if count := accelerators if isinstance(accelerators, int) else len(accelerators):
            limits.append(count)
        if isinstance(settings, GlobusMPISettings):
            limits = [settings.max_workers_per_block]
        return int(min(limits) * self.most_pools)

    def staged(self, run_directory: str) -> str | None:
        """Put the workers' files into the run directory where the user endpoint's own Python, or host, may not be
        theirs; return where. Raises EngineFailed."""
        elsewhere = self._in_container or not self.is_local  # where links to this host's files would lead nowhere
        return stage(run_directory, copy=elsewhere) if elsewhere or self._own_shell else None

    @property
    def pools_per_block(self) -> int:
        """How many worker pools a block has: one on each node, or one for all of them where tasks are MPI's."""
        return 1 if self._is_mpi else self._option("nodes_per_block", 1)

    @property
    def most_pools(self) -> int:
        """How many worker pools there are when every block is up."""
        return self.pools_per_block * self._option("max_blocks", 1)

    def _walltime(self) -> float | None:
        """Raises EndpointMisconfigured for a walltime that Parsl could not read when it submits."""
        if self._kind.__name__ not in _ENFORCES_WALLTIME:
            return None
        text = str(self._options.get("walltime", inspect.signature(self._kind).parameters["walltime"].default))
        seconds = seconds_of(text)
        if self._kind.__name__ not in _IN_MINUTES:
            return seconds
        if not re.fullmatch(r"\d+:\d+:\d+", text):
            raise EndpointMisconfigured(detail=f"engine.provider.walltime: {text!r} is not of the form HH:MM:SS")
        return seconds // 60 * 60 or None if seconds else None

    def _option(self, name: str, default: int) -> int:
        if name in self._options:
            return int(self._options[name])
        parameter = inspect.signature(self._kind).parameters.get(name)
        return int(parameter.default) if parameter is not None and isinstance(parameter.default, int) else default

    def make(self) -> Any:
        """Return the provider. May run the scheduler's commands; raises what Parsl raises."""
        annotations = {name: each.annotation for name, each in inspect.signature(self._kind).parameters.items()}
        options = {name: _with_tuples(value, annotations.get(name)) for name, value in self._options.items()}
        if self.name in _RUN_ONCE:
            options["scheduler_options"] = f"{_RUN_ONCE[self.name]}\n{options.get('scheduler_options', '')}"
        if self._launcher is not None:
            kind, arguments = self._launcher
            options["launcher"] = launcher_with_quoted_paths(kind)(**arguments)
        elif self._is_mpi or (self.is_local and options.get("nodes_per_block", 1) == 1):
            options["launcher"] = parsl.launchers.SimpleLauncher()  # the usual one starts four processes more
        provider = with_quoted_paths(self._kind)(**options)
        if self.name == "SlurmProvider" and provider._cmd.startswith("squeue"):  # noqa: SLF001 - where there is no sacct
            # If the one job asked for is forgotten, squeue fails as it does when the controller is away, and the job
            # would never count as ended. If two are asked for, squeue leaves out the jobs that it doesn't know.
            provider._cmd = provider._cmd.replace("'{0}'", "'{0},{0}'")  # noqa: SLF001
        return provider

    def _checked_launcher(self, launcher: Any) -> tuple[type, dict[str, Any]] | None:
        if launcher is None:
            return None
        if not isinstance(launcher, Mapping) or not isinstance(launcher.get("type"), str):
            raise EndpointMisconfigured(detail="engine.provider.launcher: needs a `type`, e.g. SrunLauncher")
        options = dict(launcher)
        kind = _class_of(options.pop("type"), parsl.launchers, parsl.launchers.base.Launcher, "provider.launcher")
        _check(kind, options, "engine.provider.launcher")
        return kind, options


def _class_of(name: str, package: Any, base: type, where: str) -> type:
    found = getattr(package, name, None) if name.isidentifier() and not name.startswith("_") else None
    if isinstance(found, type) and issubclass(found, base) and found is not base:
        return found
    known = tuple(sorted(known for known in getattr(package, "__all__", ())))
    reason = unknown_key_reason(name, known).replace("unknown key", f"Parsl has no {name}")
    raise EndpointMisconfigured(detail=f"engine.{where}.type: {reason}")


def _check(kind: type, options: Mapping[str, Any], where: str, besides: str = "") -> None:
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in ("self", besides) and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for key, value in options.items():
        parameter = parameters.get(key)
        if parameter is None:
            accepted = tuple(parameters) + ((besides,) if besides else ())
            raise EndpointMisconfigured(detail=f"{where}.{key}: {unknown_key_reason(key, accepted)}")
        expected = parameter.annotation if parameter.annotation is not inspect.Parameter.empty else None
        if key == "parallelism":
            expected = float  # where Parsl says nothing, its default is a whole number
        if not _fits(value, expected, parameter.default):
            wanted = getattr(expected, "__name__", None) or str(expected or type(parameter.default).__name__)
            raise EndpointMisconfigured(detail=f"{where}.{key}: expected {wanted}, got {type(value).__name__}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise EndpointMisconfigured(detail=f"{where}.{name}: missing")


def _fits(value: Any, expected: Any, default: Any) -> bool:
    """Tell whether a value fits an annotation; where there is none, whether it is of the default's kind."""
    if expected is None or expected is Any or isinstance(expected, str):
        expected = type(default) if isinstance(default, str | int | float) else None
        return expected is None or isinstance(value, _widened(expected))
    origin = typing.get_origin(expected)
    if origin in (typing.Union, UnionType):
        return any(_fits(value, part, None) for part in typing.get_args(expected))
    if origin in (list, tuple):
        return isinstance(value, list | tuple)
    kind = origin or expected
    return not isinstance(kind, type) or isinstance(value, _widened(kind))


def _with_tuples(value: Any, expected: Any) -> Any:
    """Return a value of YAML, which has no tuples, with tuples where Parsl requires them."""
    if not isinstance(value, list):
        return value
    parts = typing.get_args(expected)
    if typing.get_origin(expected) is tuple:
        return tuple(value)
    return [_with_tuples(each, parts[0]) for each in value] if typing.get_origin(expected) is list and parts else value


def _widened(kind: type) -> tuple[type, ...]:
    return (int, float) if kind is float else (kind,)


def worker_addresses(settings: GlobusComputeSettings, *, local: bool) -> list[str]:
    """Return the addresses at which workers look for this host. Raises EndpointMisconfigured.

    No outside service is used (Parsl itself asks a public one for this host's address).
    """
    given = settings.address
    if isinstance(given, str):
        return [given]
    if isinstance(given, AddressSettings):
        arguments = {} if given.ifname is None else {"ifname": given.ifname}
        try:
            return [str(getattr(parsl.addresses, given.type)(**arguments))]
        except OSError as error:
            name = given.ifname or given.type
            raise EndpointMisconfigured(detail=f"engine.address: {name}: {error.strerror or error}") from error
    return ["127.0.0.1"] if local else _own_addresses()


def _own_addresses() -> list[str]:
    found = []
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):  # an interface that has no IPv4 address
            found.append(str(parsl.addresses.address_by_interface(name)))
    outside = [address for address in found if not address.startswith("127.")]
    if not outside:
        raise EndpointMisconfigured(detail="engine.address: this host has no address that workers could reach")
    return outside
