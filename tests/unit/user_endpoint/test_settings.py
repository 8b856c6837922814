"""Options of user endpoints and engines: their defaults, and the words with which others are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_endpoint.settings import GlobusComputeSettings, SettingsInvalid, ThreadPoolSettings, settings_from

HTEX = {"type": "GlobusComputeEngine"}


def test_defaults_are_globus_computes() -> None:
    found = settings_from({"engine": HTEX})
    assert found.engine == GlobusComputeSettings()
    assert isinstance(found.engine, GlobusComputeSettings)
    assert found.engine.provider == {"type": "LocalProvider"}
    assert found.engine.encrypted
    assert (found.period_s, found.idle_soft_s, found.idle_hard_s) == (30.0, None, None)


def test_idle_limits_count_in_heartbeats_of_at_least_five_seconds() -> None:
    found = settings_from(
        {"engine": HTEX, "heartbeat_period": 1, "idle_heartbeats_soft": 3, "idle_heartbeats_hard": 100}
    )
    assert (found.idle_soft_s, found.idle_hard_s) == (15.0, 500.0)


def test_what_is_null_or_empty_is_not_given() -> None:
    found = settings_from({"engine": {**HTEX, "label": "", "max_workers_per_node": None}, "display_name": None})
    assert found.engine == GlobusComputeSettings()


@pytest.mark.parametrize(
    ("document", "path", "says"),
    [
        ([], "", "not a mapping"),
        ({}, "engine", "missing"),
        ({"engine": []}, "engine", "not a mapping"),
        ({"engine": {"type": 3}}, "engine.type", "3 is not one of ProcessPoolEngine"),
        ({"engine": HTEX, "lines": {}}, "lines", "unknown key"),
        ({"engine": {**HTEX, "manager_selector": {"type": "x"}}}, "engine.manager_selector.type", "Invalid enum value"),
        ({"engine": {"type": ["x"]}}, "engine.type", "is not one of"),
        ({"engine": HTEX, "idle_heartbeats": 1}, "idle_heartbeats", "did you mean idle_heartbeats_soft?"),
        ({"engine": HTEX, "not_applicable": []}, "not_applicable", "unknown key"),
        ({"engine": HTEX, 5: 1}, "5", "must be text"),
        ({"engine": {**HTEX, "max_workers": 2}}, "engine.max_workers", "did you mean max_workers_per_node?"),
        ({"engine": {**HTEX, "max_workers_per_node": 0}}, "engine.max_workers_per_node", ">= 1"),
        ({"engine": {**HTEX, "max_workers_per_node": True}}, "engine.max_workers_per_node", "got `bool`"),
        ({"engine": {**HTEX, "worker_port_range": [1]}}, "engine.worker_port_range", "2"),
        ({"engine": {**HTEX, "worker_port": 70000}}, "engine.worker_port", "65535"),
        ({"engine": {**HTEX, "cpu_affinity": "list:a"}}, "engine", "`cpu_affinity` is none, block"),
        ({"engine": {**HTEX, "provider": {"account": "x"}}}, "engine", "`provider` needs a `type`"),
        ({"engine": {**HTEX, "provider": "SlurmProvider"}}, "engine.provider", "Expected `object`"),
        ({"engine": {**HTEX, "address": {"type": "address_by_query"}}}, "engine.address.type", "Invalid enum value"),
        ({"engine": {**HTEX, "address": {"type": "address_by_interface"}}}, "engine.address", "`ifname`"),
        ({"engine": {**HTEX, "strategy": "fast"}}, "engine.strategy", "Invalid enum value 'fast'"),
        (
            {"engine": {**HTEX, "job_status_kwargs": {"max_idle": 1}}},
            "engine.job_status_kwargs.max_idle",
            "max_idletime",
        ),
        ({"engine": {**HTEX, "provider": {"type": "x", "walltime": 1800}}}, "engine.provider.walltime", "10:30:00"),
        ({"engine": {"type": "ThreadPoolEngine", "encrypted": True}}, "engine.encrypted", "Accepted: type, label"),
    ],
)
def test_refusals_name_the_path_and_what_is_accepted(document: Any, path: str, says: str) -> None:
    with pytest.raises(SettingsInvalid) as caught:
        settings_from(document)
    assert caught.value.path == path
    assert says in caught.value.reason


def test_both_kinds_of_strategy() -> None:
    assert settings_from({"engine": {**HTEX, "strategy": {"type": "SimpleStrategy", "max_idletime": 30}}})
    assert settings_from({"engine": {**HTEX, "strategy": "htex_auto_scale"}})
    assert settings_from({"engine": {"type": "ThreadPoolEngine"}}).engine == ThreadPoolSettings()


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from([*GlobusComputeSettings.__struct_fields__, "type", "x"])


@given(
    engine=st.dictionaries(KEYS, ANYTHING, max_size=4), rest=st.dictionaries(st.text(max_size=8), ANYTHING, max_size=2)
)
def test_whatever_comes_is_settings_or_is_refused(engine: dict[str, Any], rest: dict[str, Any]) -> None:
    try:
        settings_from({"engine": {"type": "GlobusComputeEngine", **engine}, **rest})
    except SettingsInvalid as error:
        assert error.reason
