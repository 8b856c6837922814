"""Providers and launchers by name, their keys checked against Parsl's signatures, and the scripts they generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mep_wire.errors import EndpointMisconfigured
from user_endpoint.engines.htex.executor import free_port, free_ports
from user_endpoint.engines.htex.provider import Plan, worker_addresses
from user_endpoint.settings import AddressSettings, GlobusComputeSettings


def plan(**options: Any) -> Plan:
    return Plan(GlobusComputeSettings(**options))


def detail_of(**options: Any) -> str:
    with pytest.raises(EndpointMisconfigured) as caught:
        plan(**options)
    return caught.value.detail


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("SlurmProvider", {"partition": "cpu", "account": "a", "walltime": "00:30:00", "exclusive": False}),
        ("PBSProProvider", {"queue": "q", "cpus_per_node": 64, "select_options": "ngpus=4", "walltime": "00:30:00"}),
        ("LSFProvider", {"queue": "q", "walltime": "01:00:00"}),
        ("CondorProvider", {"cores_per_slot": 2}),
        ("GridEngineProvider", {"queue": "q"}),
        ("TorqueProvider", {"queue": "q"}),
        ("LocalProvider", {"parallelism": 0.5, "max_blocks": 3}),
    ],
)  # fmt: skip
def test_providers_by_name(kind: str, options: dict[str, Any]) -> None:
    assert plan(provider={"type": kind, **options}).is_local == (kind == "LocalProvider")


@pytest.mark.parametrize(
    ("provider", "says"),
    [
        ({"type": "SlurmProvder"}, "engine.provider.type: Parsl has no SlurmProvder; did you mean SlurmProvider?"),
        ({"type": "ExecutionProvider"}, "Parsl has no"),
        ({"type": "os"}, "Parsl has no"),
        ({"type": "SlurmProvider", "walltme": "1"}, "engine.provider.walltme: unknown key; did you mean walltime?"),
        ({"type": "SlurmProvider", "nodes_per_block": "2"}, "engine.provider.nodes_per_block: expected int, got str"),
        ({"type": "SlurmProvider", "account": 12}, "engine.provider.account: expected"),
        ({"type": "LSFProvider", "max_blocks": []}, "engine.provider.max_blocks: expected int, got list"),
        ({"type": "KubernetesProvider"}, "engine.provider.image: missing"),
        ({"type": "LSFProvider", "walltime": "01:00"}, "engine.provider.walltime: '01:00' is not of the form HH:MM:SS"),
        ({"type": "LocalProvider", "launcher": {"type": "NoLauncher"}}, "engine.provider.launcher.type: Parsl has no"),
        (
            {"type": "LocalProvider", "launcher": {"type": "SrunLauncher", "debug": "no"}},
            "launcher.debug: expected bool",
        ),
    ],
)
def test_what_parsl_does_not_have(provider: dict[str, Any], says: str) -> None:
    assert says in detail_of(provider=provider)


def test_conveniences_reach_the_provider() -> None:
    made = plan(nodes_per_block=3, worker_init="module load x", provider={"type": "LocalProvider", "max_blocks": 2})
    assert made.most_pools == 6
    assert made.expected_slots(GlobusComputeSettings(max_workers_per_node=1)) == 6
    provider = made.make()
    assert provider.nodes_per_block == 3
    assert "\nmodule load x\n" in provider.worker_init
    assert "MEP_PYTHON" in provider.worker_init
    own = plan(nodes_per_block=3, provider={"type": "LocalProvider", "nodes_per_block": 2})
    assert own.most_pools == 2


def test_a_launcher_is_made_with_its_options(tmp_path: Path) -> None:
    launcher = {"type": "MpiExecLauncher", "bind_cmd": "--cpu-bind", "overrides": "--depth=64 --ppn 1"}
    provider = plan(provider={"type": "LocalProvider", "launcher": launcher}).make()
    script = provider.launcher("WORK", 1, 2, str(tmp_path))
    assert "mpiexec --cpu-bind" in script
    assert "--depth=64 --ppn 1" in script


def test_addresses() -> None:
    assert worker_addresses(GlobusComputeSettings(), local=True) == ["127.0.0.1"]
    assert worker_addresses(GlobusComputeSettings(address="10.1.2.3"), local=False) == ["10.1.2.3"]
    by_name = GlobusComputeSettings(address=AddressSettings(type="address_by_interface", ifname="lo"))
    assert worker_addresses(by_name, local=False) == ["127.0.0.1"]
    assert "engine.address: none0" in detail_of(address=AddressSettings(type="address_by_interface", ifname="none0"))


def test_ports_that_the_kernel_does_not_hand_out() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    first, last = free_ports()
    assert last < low or first > high
    assert first <= free_port((first, last)) <= last
