"""MPI tasks of several shapes on the nodes of one block, by Open MPI, as a mapped user behind the whole path.

The nodes are this host by three names: the block's node file says so, as a scheduler's would.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from sitekit.endpoint import SCHEMA

from mep_sdk import MPIFunction, ShellFunction
from mep_wire.errors import ResourceSpecInvalid
from tests.support.campus import make_campus
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 60
NODES = ("localhost", "127.0.0.1", socket.gethostname())
TEMPLATE = f"""\
heartbeat_period: 5
engine:
  type: GlobusMPIEngine
  mpi_launcher: mpiexec
  max_workers_per_block: 4
  provider:
    type: LocalProvider
    init_blocks: 0
    max_blocks: 1
    worker_init: |
      export PBS_NODEFILE="$HOME/nodes"
      printf '%s\\n' {" ".join(NODES)} > "$PBS_NODEFILE"
"""
SUM_OF_RANKS = """\
import ctypes, os, time
began = time.time()
mpi = ctypes.CDLL("libmpi.so.40", mode=ctypes.RTLD_GLOBAL)
mpi.MPI_Init(None, None)
world, total = ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_comm_world")), ctypes.c_int()
rank, kind = ctypes.c_int(), ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_int"))
mpi.MPI_Comm_rank(ctypes.c_void_p(world), ctypes.byref(rank))
add = ctypes.addressof(ctypes.c_char.in_dll(mpi, "ompi_mpi_op_sum"))
pointers = [ctypes.c_void_p(each) for each in (kind, add, world)]
mpi.MPI_Allreduce(ctypes.byref(rank), ctypes.byref(total), 1, *pointers)
time.sleep(1.5)
if rank.value == 0:
    print(total.value, os.getuid(), began, time.time(), os.environ["PARSL_MPI_NODELIST"])
mpi.MPI_Finalize()
"""
SHAPES = ((1, 1), (2, 2), (1, 3), (3, 1))
"""Nodes, and ranks on each. The last needs the whole block."""


@pytest.fixture(scope="module")
def campus() -> Iterator[Any]:
    with make_campus("multi", "mpi", TEMPLATE) as made:
        made.endpoint.write(SCHEMA, {"type": "object", "additionalProperties": False})
        made.endpoint.start()
        yield made


def test_shapes_share_the_nodes_of_one_block(campus: Any) -> None:
    program = MPIFunction(f"/usr/bin/python3 -c '{SUM_OF_RANKS.replace('{', '{{').replace('}', '}}')}'")
    with campus.executor("alice") as executor:
        futures = []
        for nodes, each in SHAPES:
            executor.resource_specification = {"num_nodes": nodes, "ranks_per_node": each}
            futures.append(executor.submit(program))
        results = [future.result(timeout=RESULT_S) for future in futures]
    runs = []
    for (nodes, each), result in zip(SHAPES, results, strict=True):
        assert result.returncode == 0, result.stderr
        total, uid, began, ended, names = result.stdout.split()
        assert int(total) == sum(range(nodes * each))
        assert int(uid) == campus.accounts["alice"].uid
        assert len(set(names.split(",")) & set(NODES)) == nodes
        runs.append((float(began), float(ended), set(names.split(","))))
    pairs = [(one, other) for index, one in enumerate(runs) for other in runs[:index]]
    at_once = [(one, other) for one, other in pairs if one[0] < other[1] and other[0] < one[1]]
    assert at_once, "nothing ran beside anything"
    assert not any(one[2] & other[2] for one, other in at_once), "a node was given to two tasks at once"


BAD = [
    (None, "need one"),
    ({"num_nodes": 2, "rank_per_node": 1}, "rank_per_node"),
    ({"num_nodes": 0}, "num_nodes"),
    ({"num_nodes": "many"}, "num_nodes"),
    ({"num_nodes": 2, "ranks_per_node": 2, "num_ranks": 9}, "9 ranks"),
    ({"num_nodes": 9}, "a block has 3"),
    ({"launcher_options": "--oversubscribe"}, "neither nodes nor ranks"),
]


@pytest.mark.parametrize(("spec", "reason"), BAD)
def test_what_cannot_be_given_is_refused_before_anything_runs(campus: Any, spec: Any, reason: str) -> None:
    mark = f"{campus.accounts['alice'].home}/ran"
    with campus.executor("alice") as executor:
        executor.resource_specification = spec
        with pytest.raises(ResourceSpecInvalid, match=reason):
            executor.submit(ShellFunction(f"touch {mark}")).result(timeout=RESULT_S)
        executor.resource_specification = {"num_nodes": 1, "num_ranks": 1}
        assert executor.submit(ShellFunction(f"test ! -e {mark}")).result(timeout=RESULT_S).returncode == 0


def test_a_cancelled_task_ends_its_ranks_and_gives_its_nodes_back(campus: Any) -> None:
    account = campus.accounts["alice"]
    with campus.executor("alice") as executor:
        executor.resource_specification = {"num_nodes": 3, "ranks_per_node": 1}
        running = executor.submit(MPIFunction("sh -c 'echo $$ >> $HOME/ranks; exec sleep 300'"))
        waiting = executor.submit(ShellFunction("echo got them"))
        until("three ranks", lambda: len(read(f"{account.home}/ranks").split()) == 3)
        ranks = read(f"{account.home}/ranks").split()
        running.cancel()
        with pytest.raises(CancelledError):
            running.result(timeout=RESULT_S)
        assert waiting.result(timeout=RESULT_S).stdout == "got them\n"
        until("the end of the ranks", lambda: not any(read(f"/proc/{pid}/comm").strip() == "sleep" for pid in ranks))


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def test_a_large_result_goes_by_reference(campus: Any) -> None:
    with campus.executor("alice") as executor:
        executor.resource_specification = {"num_nodes": 1}
        assert len(executor.submit(bytes, 12_000_000).result(timeout=RESULT_S)) == 12_000_000
