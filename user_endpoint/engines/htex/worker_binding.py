"""Each worker's binding on its node: which processors and which accelerator it may use, and its rank.

The variables are those that Parsl's own worker pool sets, since sites' and people's programs read them.
Standard library only; used by the pool.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from user_endpoint.engines.htex.worker_pool_options import Options, OptionsInvalid
from user_endpoint.workers import start_journal
from user_endpoint.workers.datagrams import BEGUN_VARIABLE

_PROBE_S = 20


@dataclass(frozen=True, slots=True)
class WorkerBinding:
    """The binding of one worker. No `processors` means all that the pool has."""

    variables: dict[str, str]
    processors: list[int]
    view: start_journal.JournalView | None = None
    """Path of the worker's start journal."""


def worker_bindings(options: Options, workers: int, processors: Sequence[int], pool: str) -> list[WorkerBinding]:
    """Return the bindings of `workers` workers on a node with these processors. Raises OptionsInvalid."""
    shares = _shares(options.cpu_affinity, workers, sorted(processors))
    devices = _cuda_devices() if options.accelerators else 0
    result = []
    for rank in range(workers):
        variables = {
            "PARSL_WORKER_RANK": str(rank),
            "PARSL_WORKER_COUNT": str(workers),
            "PARSL_WORKER_POOL_ID": pool,
            "PARSL_WORKER_BLOCK_ID": options.block_id,
        }
        if shares:
            variables |= _thread_variables(shares[rank])
        if options.accelerators:
            variables |= _accelerator_variables(options.accelerators[rank], workers, devices)
        view = _make_notes(options, f"{pool}.{rank}", variables)
        result.append(WorkerBinding(variables, shares[rank] if shares else [], view))
    return result


def _make_notes(options: Options, name: str, variables: dict[str, str]) -> start_journal.JournalView | None:
    """Make a worker's start journal before it can have any task, and tell the worker. Raises OptionsInvalid."""
    how = start_journal.FORCED if options.shared else start_journal.FENCED
    path = f"{options.begun}/{name}"
    try:
        start_journal.create(path, how)
        view = start_journal.JournalView(path + start_journal.FIRST)
    except OSError as error:
        if not options.begun or (isinstance(error, FileNotFoundError) and not options.cert_dir):
            return None  # no file system that this node and the user endpoint share
        raise OptionsInvalid(f"notes cannot be kept: {path}: {error.strerror}") from error
    variables[BEGUN_VARIABLE] = f"{how}:{path}"
    return view


def _shares(affinity: str, workers: int, processors: list[int]) -> list[list[int]]:
    """Return each worker's processors, or nothing where they are not divided."""
    if affinity == "none":
        return []
    if affinity.startswith("list:"):
        parts = affinity.split(":")[1:]
        if len(parts) != workers:
            raise OptionsInvalid(f"cpu_affinity names {len(parts)} groups of processors for {workers} workers")
        return [_group(part) for part in parts]
    each = len(processors) // workers
    if not each:
        raise OptionsInvalid(f"cpu_affinity: {workers} workers are more than the {len(processors)} processors")
    blocks = [processors[each * rank : each * (rank + 1)] for rank in range(workers)]
    if affinity == "block":
        return blocks
    if affinity == "block-reverse":
        return blocks[::-1]
    if affinity == "alternating":
        return [processors[rank::workers] for rank in range(workers)]
    raise OptionsInvalid(f"cpu_affinity: {affinity} is not known")


def _group(text: str) -> list[int]:
    """Return the processors in a text such as 24-31,56-63."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _thread_variables(processors: list[int]) -> dict[str, str]:
    named = ",".join(map(str, processors))
    return {
        "OMP_NUM_THREADS": str(len(processors)),
        "GOMP_CPU_AFFINITY": named,
        "KMP_AFFINITY": f"explicit,proclist=[{named}]",
    }


def _accelerator_variables(name: str, workers: int, devices: int) -> dict[str, str]:
    """Return the variables that pin a worker to one accelerator; more workers than CUDA devices share them evenly."""
    cuda = name
    if devices and name.isdecimal() and workers >= devices:
        cuda = str(int(name) // (workers // devices))
    return {
        "CUDA_VISIBLE_DEVICES": cuda,
        "ROCR_VISIBLE_DEVICES": name,
        "ZE_AFFINITY_MASK": name,
        "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1",
    }


def _cuda_devices() -> int:
    """Return how many CUDA devices the node has, 0 where it cannot be told."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, timeout=_PROBE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    return len(listed.stdout.splitlines())
