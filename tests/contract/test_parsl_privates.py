"""Every attribute of Parsl's classes that the HTEX engine relies on, by name, and that Parsl still has each of them.

Parsl promises none of them, private or not: they are attributes of objects that its users never touch. pyproject.toml
therefore bounds Parsl's version from above. To raise the bound, run this test and tests/faults with the new version.
The tables are complete: a use that they do not name fails the test as well.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsl.executors.high_throughput.executor import HighThroughputExecutor
from parsl.executors.high_throughput.interchange import Interchange
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

import user_endpoint.engines.htex as htex
from user_endpoint.engines.htex.executor import InterchangeClient
from user_endpoint.engines.htex.interchange import BatchInterchange

ROOT = Path(__file__).parents[2]

OVERRIDDEN = {
    InterchangeClient: {
        "_get_launch_command",
        "_start_local_interchange_process",
        "_start_result_queue_thread",
        "initialize_scaling",
    },
    BatchInterchange: {"expire_bad_managers", "process_tasks_to_send", "start"},
}
"""Methods of Parsl's that ours replace. Parsl itself calls those of the client; the interchange's loop is our own."""

USED = {
    InterchangeClient: {
        *("_get_launch_command", "_hold_block", "_simulated_status", "address", "all_addresses"),
        *("available_accelerators", "blocks_to_job_id", "cert_dir", "command_client", "heartbeat_threshold"),
        *("incoming_q", "initialize_scaling", "interchange_launch_cmd", "interchange_proc", "logdir"),
        *("loopback_address", "manager_selector", "outgoing_q", "poll_period", "prefetch_capacity", "run_dir"),
        *("run_id", "scale_out_facade", "start", "status_polling_interval", "worker_debug", "worker_logdir"),
        *("worker_port", "worker_port_range"),
    },
    BatchInterchange: {
        *("_ready_managers", "command_channel", "expire_bad_managers", "expire_drained_managers", "get_tasks"),
        *("heartbeat_threshold", "manager_selector", "manager_sock", "pending_task_queue", "poll_period"),
        *("process_command", "process_tasks_to_send", "results_outgoing", "socks", "task_incoming", "zmq_context"),
    },
}
"""Attributes of Parsl's that our subclasses use, and `blocks` through the client."""

OF_OTHERS = {"_simulated_status", "_cmd"}
"""Private attributes of any object that is not `self`, anywhere in the engine."""


def _attributes(code: str, of: str) -> set[str]:
    """Return the names that `code` looks up on the variable `of`."""
    nodes = ast.walk(ast.parse(textwrap.dedent(code)))
    found = (node for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == of}


def _given_by_parsl(kind: type) -> set[str]:
    """Return every name that Parsl's classes define or set on themselves."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("parsl."):
            names |= set(vars(base)) | _attributes(inspect.getsource(base), "self")
    return {name for name in names if not name.startswith("__")}


def _sources() -> Iterator[str]:
    for path in Path(htex.__file__).parent.glob("*.py"):
        yield path.read_text()


def _used(kind: type) -> set[str]:
    """Return the names that our code uses on `kind`, and that Parsl's classes have."""
    used = _attributes(inspect.getsource(kind), "self")
    if kind is InterchangeClient:
        for code in _sources():
            used |= _attributes(code, "client") | {
                node.attr
                for node in ast.walk(ast.parse(code))
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Attribute)
                and node.value.attr == "_client"
            }
    used |= {name for name in OVERRIDDEN[kind] if f"super().{name}" in inspect.getsource(kind)}
    return used & _given_by_parsl(kind)


@pytest.mark.parametrize("kind", [InterchangeClient, BatchInterchange])
def test_what_the_engine_uses_of_parsl_is_named(kind: type) -> None:
    assert _used(kind) == USED[kind]


@pytest.mark.parametrize(
    ("kind", "base"), [(InterchangeClient, HighThroughputExecutor), (BatchInterchange, Interchange)]
)
def test_parsl_still_has_it(kind: type, base: type) -> None:
    assert USED[kind] <= _given_by_parsl(base)


@pytest.mark.parametrize(
    ("kind", "base"), [(InterchangeClient, HighThroughputExecutor), (BatchInterchange, Interchange)]
)
def test_what_replaces_a_method_of_parsls_still_replaces_one(kind: type, base: type) -> None:
    own = {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("__")}
    assert {name for name in own if hasattr(base, name)} == OVERRIDDEN[kind]
    if kind is InterchangeClient:
        called = set().union(*(_attributes(inspect.getsource(each), "self") for each in base.__mro__[:-1]))
        assert OVERRIDDEN[kind] <= called


@pytest.mark.parametrize("provider", [LocalProvider, PBSProProvider, SlurmProvider])
def test_providers_keep_their_jobs_where_the_engine_looks(provider: type) -> None:
    assert "resources" in _given_by_parsl(provider)
    assert "_cmd" in _given_by_parsl(provider) or provider is not SlurmProvider


def test_no_other_private_attribute_is_touched() -> None:
    found: set[str] = set()
    for code in _sources():
        own = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not of_self and not (isinstance(node.value, ast.Call) and node.attr in own):  # super()._x()
                    found.add(node.attr)
    assert found == OF_OTHERS


def test_the_version_of_parsl_is_bounded_from_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (parsl,) = [one for one in project["dependencies"] if one.startswith("parsl")]
    assert "<" in parsl, parsl
