"""MPI tasks on the nodes of one block: which nodes each gets, and the command that starts its ranks there.

One pool serves the whole block, from its first node. A task waits until as many nodes are free as it asks for;
others that fit may overtake it, but not for ever. The environment variables are those of Parsl's MPI mode, which
MPIFunction and people's own functions read. Called by the pool; runs as the mapped user.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence

import msgspec

from mep_wire.errors import MepError, TaskCancelled
from mep_wire.messages import ResultItem
from user_endpoint.engines.base import EngineTask, Event, TaskReturned
from user_endpoint.engines.htex.worker_pool_options import OptionsInvalid
from user_endpoint.engines.process_pool.engine import ProcessPoolEngine
from user_endpoint.resource_spec import Shape, shape_of

_PROBE_S = 20
_MOST_OVERTAKEN = 64
"""Tasks that may begin before an older one for which there were not enough nodes."""


def block_nodes(environment: Mapping[str, str]) -> list[str]:
    """Return the names of this block's nodes as the scheduler gives them; without a scheduler, this host's alone.

    Raises OptionsInvalid where they cannot be read.
    """
    try:
        if path := environment.get("PBS_NODEFILE"):
            with open(path) as file:
                found = file.read().split()
        elif slurm := environment.get("SLURM_JOB_NODELIST") or environment.get("SLURM_NODELIST"):
            command = ["scontrol", "show", "hostnames", slurm]
            answer = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=True)
            found = answer.stdout.split()
        elif path := environment.get("LSB_DJOB_HOSTFILE"):
            with open(path) as file:
                found = file.read().split()[1:]  # the first is the node that only starts the job
        else:
            found = environment.get("LSB_HOSTS", "").split() or ["localhost"]
    except (OSError, subprocess.SubprocessError) as error:
        raise OptionsInvalid(f"the block's nodes cannot be told: {error}") from error
    return list(dict.fromkeys(found))  # some name a node once for each of its processors


def is_open_mpi() -> bool:
    """Tell whether mpiexec is Open MPI's: its options differ from those of the others."""
    try:
        answer = subprocess.run(["mpiexec", "--version"], capture_output=True, timeout=_PROBE_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return b"OpenRTE" in answer.stdout or b"Open MPI" in answer.stdout


def launch_variables(launcher: str, shape: Shape, hosts: Sequence[str], *, open_mpi: bool) -> dict[str, str]:
    """Return the variables of a task with this shape on these nodes. PARSL_MPI_PREFIX is the launcher's command."""
    named, options = ",".join(hosts), f" {shape.launcher_options}"
    mpiexec = f"mpiexec -n {shape.ranks} -ppn {shape.ranks_per_node} -hosts {named}{options}"
    if open_mpi:
        slots = ",".join(f"{host}:{shape.ranks_per_node}" for host in hosts)
        mpiexec = f"mpiexec -n {shape.ranks} --host {slots}{options}"
    tasks = f"--ntasks {shape.ranks} --ntasks-per-node {shape.ranks_per_node}"
    prefixes = {
        "mpiexec": mpiexec,
        "srun": f"srun {tasks} --nodelist {named} --nodes {len(hosts)}{options}",
        "aprun": f"aprun -n {shape.ranks} -N {shape.ranks_per_node} -node-list {named}{options}",
    }
    return {
        "PARSL_NUM_NODES": str(shape.nodes),
        "PARSL_RANKS_PER_NODE": str(shape.ranks_per_node),
        "PARSL_NUM_RANKS": str(shape.ranks),
        "PARSL_LAUNCHER_OPTIONS": shape.launcher_options,
        "PARSL_MPI_NODELIST": named,
        **{f"PARSL_{name.upper()}_PREFIX": prefix for name, prefix in prefixes.items()},
        "PARSL_MPI_PREFIX": prefixes[launcher],
    }


def slots_in_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings with which Open MPI's mpiexec starts a rank for each processor that Slurm gave the block.

    It starts as many on each node as the job has tasks there, which is one: a block's script.
    """
    processors = environment.get("SLURM_JOB_CPUS_PER_NODE")
    return {"SLURM_TASKS_PER_NODE": processors} if processors else {}


class MpiEngine:
    """An engine before the engine: holds MPI tasks until there are nodes for them."""

    trouble = trouble_code = blocks = ""
    fed = False

    def __init__(
        self, workers: ProcessPoolEngine, count: int, nodes: list[str], launcher: str, ends: float | None = None
    ) -> None:
        self._workers, self._count, self._launcher = workers, count, launcher
        self._ends = ends  # of the block, by time.monotonic
        self._nodes, self._free = nodes, list(nodes)
        self._open_mpi = launcher == "mpiexec" and is_open_mpi()
        self._waiting: list[tuple[EngineTask, Shape]] = []
        self._running: dict[int, list[str]] = {}  # row -> its nodes
        self._scratch: dict[int, str] = {}
        self._overtaken = 0
        self._events: list[Event] = []
        self._draining = False

    @property
    def worker_python(self) -> str:
        """That of the workers."""
        return self._workers.worker_python

    @property
    def capacity(self) -> int:
        """How many tasks run at once at most."""
        return self._count

    def start(self) -> None:
        """Start the workers. Raises EngineFailed."""
        self._workers.start()

    def fileno(self) -> int:
        """The workers' descriptor."""
        return self._workers.fileno()

    def submit(self, tasks: Sequence[EngineTask]) -> None:
        """Take these tasks; those that no block could run end here."""
        for task in tasks:
            if self._draining:
                self._events.append(TaskReturned(task.row))
                continue
            try:
                self._waiting.append((task, shape_of(task.resource_spec, len(self._nodes))))
            except MepError as error:
                self._end(task, error)
        self._place()

    def cancel(self, rows: Sequence[int]) -> None:
        """End these tasks: at once where they wait for nodes."""
        kept = []
        for task, shape in self._waiting:
            if task.row in rows:
                self._end(task, TaskCancelled())
            else:
                kept.append((task, shape))
        self._waiting = kept
        self._workers.cancel([row for row in rows if row in self._running])
        self._place()

    def collect(self) -> list[Event]:
        """Return the events; tasks that ended have passed their nodes to others."""
        found = self._workers.collect()
        for event in found:
            if isinstance(event, TaskReturned | ResultItem):
                self._free += self._running.pop(event.row, [])
                shutil.rmtree(self._scratch.pop(event.row, ""), ignore_errors=True)
        self._place()
        events, self._events = [*self._events, *found], []
        return events

    def drain(self) -> None:
        """Return the tasks that have not begun."""
        self._draining = True
        self._events += [TaskReturned(task.row) for task, _ in self._waiting]
        self._waiting = []
        self._workers.drain()

    def stop(self, grace_s: float) -> None:
        """End the workers."""
        self._workers.stop(grace_s)
        for directory in self._scratch.values():
            shutil.rmtree(directory, ignore_errors=True)

    def _place(self) -> None:
        """Start every task for which there are nodes, the oldest first."""
        self._give_back_what_does_not_fit()
        index = 0
        while index < len(self._waiting) and len(self._running) < self._count:
            task, shape = self._waiting[index]
            if shape.nodes <= len(self._free):
                del self._waiting[index]
                self._overtaken = self._overtaken + 1 if index else 0
                self._begin(task, shape)
            elif self._overtaken >= _MOST_OVERTAKEN:
                return  # from now on nodes are kept for the oldest
            else:
                index += 1

    def _give_back_what_does_not_fit(self) -> None:
        """While it waited for nodes, the block has become too old for it."""
        if self._ends is None or not self._waiting:
            return
        left = self._ends - time.monotonic()
        late = [task.row for task, _ in self._waiting if task.walltime_s > left and task.walltime_s]
        self._events += [TaskReturned(row) for row in late]
        self._waiting = [each for each in self._waiting if each[0].row not in late]

    def _begin(self, task: EngineTask, shape: Shape) -> None:
        nodes = [self._free.pop(0) for _ in range(shape.nodes)]
        self._running[task.row] = nodes
        variables = launch_variables(self._launcher, shape, nodes, open_mpi=self._open_mpi)
        if self._open_mpi:
            variables |= slots_in_slurm(os.environ)
            # Its launchers, started at once by one person, else trip over one directory of theirs.
            with contextlib.suppress(OSError):
                self._scratch[task.row] = tempfile.mkdtemp(prefix="mep-mpi-")
                variables["OMPI_MCA_orte_tmpdir_base"] = self._scratch[task.row]
        self._workers.submit([msgspec.structs.replace(task, variables=variables)])

    def _end(self, task: EngineTask, error: MepError) -> None:
        self._events.append(ResultItem(task.row, task.task_id, error.code, error.text, b"", 0.0, time.time()))


def make_engine(workers: ProcessPoolEngine, count: int, launcher: str, ends: float | None) -> MpiEngine:
    """Return the engine of a block with the nodes that its scheduler names. Raises OptionsInvalid.

    `ends`: when the block does, by time.monotonic, None where that is not known.
    """
    return MpiEngine(workers, count, block_nodes(os.environ), launcher, ends)
