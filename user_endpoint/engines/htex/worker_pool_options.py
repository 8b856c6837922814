"""The command-line options of a node's pool, and the number of its workers.

Standard library only. The options are those of Parsl's process_worker_pool, so that sites' own `launch_cmd`
can name either.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


class OptionsInvalid(Exception):
    """The command line of a worker pool is not understood. The text names the option."""


@dataclass(frozen=True, slots=True)
class Options:
    """See the pool. Times in seconds, memory in gigabytes."""

    addresses: tuple[str, ...]
    port: int
    cert_dir: str
    logdir: str
    block_id: str
    cores_per_worker: float = 1.0
    mem_per_worker: float = 0.0
    max_workers_per_node: int = 0
    prefetch_capacity: int = 0
    hb_period: float = 30.0
    hb_threshold: float = 120.0
    drain_period: float = 0.0
    address_probe_timeout: float = 30.0
    cpu_affinity: str = "none"
    accelerators: tuple[str, ...] = ()
    working_dir: str = ""
    run_in_sandbox: int = 0
    begun: str = ""
    """Directory of the workers' start journals."""
    shared: int = 0
    """Whether the user endpoint is on another host."""
    block_walltime: float = 0.0
    """Seconds for which the block was submitted; 0 where there is no limit."""
    block_started: float = 0.0
    """When its script began, in seconds since the epoch; 0 where it has not noted that."""
    mpi_launcher: str = ""
    """Not empty: this pool runs MPI tasks, on all nodes of its block."""

    @property
    def directory(self) -> str:
        """Where this node's pool keeps its files."""
        return f"{self.logdir}/block-{self.block_id}/{os.uname().nodename}-{os.getpid()}"


_CONVERTERS = {"int": int, "float": float, "str": str}


def parse_options(arguments: list[str]) -> Options:
    """Return the options in `arguments`, each as --name=value. Raises OptionsInvalid."""
    types = {name: str(kind) for name, kind in Options.__annotations__.items()}
    found: dict[str, object] = {}
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        kind = types.get(name)
        if kind is None:
            raise OptionsInvalid(f"unknown option {argument}")
        if kind.startswith("tuple"):
            found[name] = tuple(part for part in value.split(",") if part)
            continue
        try:
            found[name] = _CONVERTERS[kind](value)
        except ValueError as error:
            raise OptionsInvalid(f"{argument}: {error}") from error
    missing = {"addresses", "port", "cert_dir", "logdir", "block_id"} - found.keys()
    if missing:
        raise OptionsInvalid(f"missing: {', '.join(sorted(missing))}")
    return Options(**found)  # type: ignore[arg-type] # converted by the fields' own types


def worker_count(options: Options) -> int:
    """Return how many workers this node gets: as its cores, memory, accelerators and the limit allow."""
    if options.mpi_launcher:
        return options.max_workers_per_node or 1
    cores = int(os.environ.get("PARSL_CORES") or len(os.sched_getaffinity(0)))
    limits = [max(1, int(cores / options.cores_per_worker))]
    if options.mem_per_worker > 0:
        limits.append(max(1, int(_memory_gb() / options.mem_per_worker)))
    if options.max_workers_per_node:
        limits.append(options.max_workers_per_node)
    if options.accelerators:
        limits.append(len(options.accelerators))
    return min(limits)


def _memory_gb() -> float:
    if given := os.environ.get("PARSL_MEMORY_GB"):
        return float(given)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
