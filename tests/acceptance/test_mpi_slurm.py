"""MPI tasks of several shapes on the two nodes of one Slurm job, as a mapped user behind the whole path.

Once with ranks that srun starts itself (Debian's Slurm has the PMIx plugin that Debian's Open MPI speaks to), once
with Open MPI's mpiexec, which has srun start its daemons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sitekit.endpoint import SCHEMA

from mep_sdk import MPIFunction, ShellFunction
from tests.support.campus import make_campus
from tests.support.slurm import NODES, Slurm

pytestmark = pytest.mark.root
RESULT_S = 90
TEMPLATE = """\
heartbeat_period: 5
engine:
  type: GlobusMPIEngine
  address: 127.0.0.1
  mpi_launcher: {{ launcher }}
  max_workers_per_block: 3
  provider:
    type: SlurmProvider
    partition: cpu
    exclusive: false
    nodes_per_block: 2
    cores_per_node: 4
    walltime: "00:10:00"
    init_blocks: 0
    max_blocks: 1
    worker_init: |
      export SLURM_MPI_TYPE=pmix OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {"launcher": {"enum": ["srun", "mpiexec"]}},
    "required": ["launcher"],
    "additionalProperties": False,
}
RANKS = """\
import ctypes, os, time
began = time.time()
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
mpi.MPI_Init(None, None)
world, total = ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_world")), ctypes.c_int()
rank, size, kind = ctypes.c_int(), ctypes.c_int(), ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_int"))
mpi.MPI_Comm_rank(ctypes.c_void_p(world), ctypes.byref(rank))
mpi.MPI_Comm_size(ctypes.c_void_p(world), ctypes.byref(size))
add = ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_op_sum"))
pointers = [ctypes.c_void_p(each) for each in (kind, add, world)]
mpi.MPI_Allreduce(ctypes.byref(rank), ctypes.byref(total), 1, *pointers)
time.sleep(1.5)
line = [rank.value, size.value, total.value, os.getuid(), os.environ["SLURMD_NODENAME"], os.environ["SLURM_JOB_ID"]]
print(*line, os.environ["PARSL_MPI_NODELIST"], began, time.time(), flush=True)
mpi.MPI_Finalize()
"""
SHAPES = ((1, 2), (1, 1), (2, 2), (2, 1))
"""Nodes, and ranks on each."""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    cluster = Slurm()
    cluster.with_pmix()
    with cluster as made:
        yield made


@pytest.fixture(scope="module")
def campus(slurm: Slurm) -> Iterator[Any]:
    with make_campus("multi", "mpicluster", TEMPLATE) as made:
        made.endpoint.write("user_environment.yaml", f"SLURM_CONF: {slurm.conf}\n")
        made.endpoint.write(SCHEMA, SCHEMA_VALUE)
        made.endpoint.register_again()
        made.endpoint.start()
        yield made


def shaped(executor: Any, function: Any, nodes: int, each: int) -> Any:
    executor.resource_specification = {"num_nodes": nodes, "ranks_per_node": each}
    return executor.submit(function)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_shapes_share_the_two_nodes_of_one_job(slurm: Slurm, campus: Any, launcher: str) -> None:
    uid = campus.accounts["alice"].uid
    program = MPIFunction(f"/usr/bin/python3 -c '{RANKS.replace('{', '{{').replace('}', '}}')}'")
    with campus.executor("alice", launcher=launcher) as executor:
        futures = [shaped(executor, program, *shape) for shape in SHAPES]
        results = [future.result(timeout=RESULT_S) for future in futures]
    runs, jobs = [], set()
    for (nodes, each), result in zip(SHAPES, results, strict=True):
        assert result.returncode == 0, result.stderr
        ranks = sorted(line.split() for line in result.stdout.splitlines())
        assert [int(rank[0]) for rank in ranks] == list(range(nodes * each)), result.stdout
        assert {(int(rank[1]), int(rank[2])) for rank in ranks} == {(nodes * each, sum(range(nodes * each)))}
        assert {int(rank[3]) for rank in ranks} == {uid}
        where = [rank[4] for rank in ranks]
        given = set(ranks[0][6].split(","))
        assert set(where) == given <= set(NODES)
        assert all(where.count(node) == each for node in given)
        jobs |= {rank[5] for rank in ranks}
        runs.append((min(float(rank[7]) for rank in ranks), max(float(rank[8]) for rank in ranks), given))
    assert len(jobs) == 1
    pairs = [(one, other) for index, one in enumerate(runs) for other in runs[:index]]
    at_once = [(one, other) for one, other in pairs if one[0] < other[1] and other[0] < one[1]]
    assert at_once, "nothing ran beside anything"
    assert not any(one[2] & other[2] for one, other in at_once), "a node was given to two tasks at once"
    assert slurm.show(jobs.pop())["NumNodes"] == "2"


def test_srun_starts_programs_that_are_no_mpi(campus: Any) -> None:
    with campus.executor("alice", launcher="srun") as executor:
        result = shaped(executor, MPIFunction("sh -c 'echo $SLURM_PROCID $SLURMD_NODENAME'"), 2, 2).result(RESULT_S)
        assert result.returncode == 0, result.stderr
        assert sorted(result.stdout.splitlines()) == ["0 n1", "1 n1", "2 n2", "3 n2"]
        plain = shaped(executor, ShellFunction("echo $PARSL_NUM_RANKS on $PARSL_MPI_NODELIST"), 1, 3).result(RESULT_S)
        assert plain.stdout.split()[:2] == ["3", "on"]
