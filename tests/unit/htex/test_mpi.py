"""The environment of MPI tasks: shapes from specifications, scheduler node lists, and Parsl's own launch commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from parsl.executors.high_throughput.mpi_prefix_composer import compose_all

from mep_wire.errors import ResourceSpecInvalid
from user_endpoint.engines.htex.mpi import block_nodes, launch_variables
from user_endpoint.engines.htex.worker_pool_options import OptionsInvalid
from user_endpoint.resource_spec import ResourceRule, Shape, shape_of
from user_endpoint.settings import GlobusMPISettings, ProcessPoolSettings, SettingsInvalid, settings_from


def shape(**spec: Any) -> Shape:
    return shape_of(msgspec.msgpack.encode(spec))


@pytest.mark.parametrize("launcher", ["mpiexec", "srun", "aprun"])
def test_commands_are_those_of_parsl(launcher: str) -> None:
    spec = {"num_nodes": 2, "ranks_per_node": 4, "num_ranks": 8, "launcher_options": "--cpu-bind depth"}
    found = launch_variables(launcher, shape(**spec), ["a", "b"], open_mpi=False)
    theirs = compose_all(launcher, spec, ["a", "b"])
    assert theirs.items() <= found.items()
    assert found["PARSL_MPI_NODELIST"] == "a,b"
    assert (found["PARSL_NUM_NODES"], found["PARSL_NUM_RANKS"], found["PARSL_RANKS_PER_NODE"]) == ("2", "8", "4")


def test_open_mpi_has_options_of_its_own() -> None:
    found = launch_variables("mpiexec", shape(num_nodes=2, num_ranks=4), ["a", "b"], open_mpi=True)
    assert found["PARSL_MPI_PREFIX"].split() == ["mpiexec", "-n", "4", "--host", "a:2,b:2"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"num_nodes": 2}, (2, 1, 2)),
        ({"num_ranks": 4}, (1, 4, 4)),
        ({"ranks_per_node": 3}, (1, 3, 3)),
        ({"num_ranks": 5, "ranks_per_node": 2}, (3, 2, 5)),
        ({"num_nodes": "2", "num_ranks": "5"}, (2, 3, 5)),
    ],
)
def test_what_is_not_given_follows(spec: dict[str, Any], expected: tuple[int, int, int]) -> None:
    found = shape(**spec)
    assert (found.nodes, found.ranks_per_node, found.ranks) == expected


def test_other_engines_take_no_specification() -> None:
    ResourceRule(ProcessPoolSettings()).check(b"")
    with pytest.raises(ResourceSpecInvalid, match="ProcessPoolEngine takes none"):
        ResourceRule(ProcessPoolSettings()).check(msgspec.msgpack.encode({"num_nodes": 1}))


def test_where_functions_are_listed_no_option_names_another_program() -> None:
    """`mpiexec -n 1 OPTIONS PROGRAM` runs the first word that is no option."""
    with_options = msgspec.msgpack.encode({"num_nodes": 1, "launcher_options": "/usr/bin/touch /tmp/elsewhere"})
    ResourceRule(GlobusMPISettings()).check(with_options)
    rule = ResourceRule(GlobusMPISettings(), listed_only=True)
    rule.check(msgspec.msgpack.encode({"num_nodes": 1}))
    with pytest.raises(ResourceSpecInvalid, match="launcher_options"):
        rule.check(with_options)


def test_nodes_as_schedulers_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nodes").write_text("x1\nx1\nx2\n")
    (tmp_path / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert block_nodes({"PBS_NODEFILE": str(tmp_path / "nodes")}) == ["x1", "x2"]
    assert block_nodes({"SLURM_JOB_NODELIST": "n[1-2]"}) == ["n1", "n2"]
    assert block_nodes({"LSB_HOSTS": "h1 h1 h2"}) == ["h1", "h2"]
    assert block_nodes({"LSB_DJOB_HOSTFILE": str(tmp_path / "nodes")}) == ["x1", "x2"]
    assert block_nodes({}) == ["localhost"]
    with pytest.raises(OptionsInvalid, match="cannot be told"):
        block_nodes({"PBS_NODEFILE": str(tmp_path / "none")})


def test_a_launcher_that_would_start_a_pool_on_each_node_is_refused() -> None:
    provider = {"type": "SlurmProvider", "launcher": {"type": "SrunLauncher"}}
    with pytest.raises(SettingsInvalid, match="SimpleLauncher"):
        settings_from({"engine": {"type": "GlobusMPIEngine", "provider": provider}})
