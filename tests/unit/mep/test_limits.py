"""Limits: their form in config.yaml, the people that they hold for, and their demands on a host."""

from __future__ import annotations

import errno
import os
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from mep.boundary import cgroup_support
from mep.boundary.errors import ConfigRefused, SpawnFailed, StartStage
from mep.boundary.resolved_config import GroupLimits, Limits
from mep.config.limits import resolved_limits, size
from mep.config.parser import read_document
from mep.root.account.lookup import limits_of
from mep.root.kernel import cgroup
from mep.root.kernel.cgroup import CgroupGate, rlimits
from mep.root.kernel.spawn import SpawnAccount
from user_endpoint.engines.process_pool.limit_watch import MemoryWatch

WHERE: Any = SimpleNamespace(config="config.yaml")


@pytest.mark.parametrize(("text", "value"), [(4096, 4096), ("4096", 4096), ("1K", 1024), ("1.5G", 3 * 2**29)])
def test_sizes(text: int | str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("value", ["0", "-1", "4GB", "4 G", "'1e9'", "true", "0.5.1G"])
def test_sizes_that_are_none(value: str) -> None:
    with pytest.raises(ConfigRefused, match=r"limits\.memory_max"):
        read_document(f"limits:\n  memory_max: {value}\n", "config.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("limits: {by_group: {staff: {memory_maximum: 1G}}}", r"limits\.by_group\.staff\.memory_maximum"),
        ("limits: {by_group: {staff: 4}}", "mapping"),
        ("limits: {by_group: [staff]}", "mapping of names"),
        ("limits: {by_group: {'a:b': {}}}", "not a name"),
        ("limits: {by_group: {4: {}}}", "must be a text"),
        ("limits: {tasks_max: 3}", "at least 16"),
        ("limits: {io_weight: 0}", "between 1 and 10000"),
    ],
)
def test_limits_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigRefused, match=reason):
        read_document(text, "config.yaml")


def test_groups_have_everybodys_values_but_their_own() -> None:
    text = "limits: {open_files: 100, processes: 50, by_group: {staff: {open_files: 200}}}"
    everybody, groups = resolved_limits(WHERE, read_document(text, "config.yaml").options)
    assert everybody == Limits(open_files=100, processes=50)
    assert groups == [GroupLimits("staff", Limits(open_files=200, processes=50))]


def test_the_first_group_decides() -> None:
    who = SpawnAccount("alice", 1000, 0, (), "/", "/bin/sh")
    groups = [GroupLimits("no-such-group", Limits(processes=1)), GroupLimits("root", Limits(processes=2))]
    assert limits_of(who, Limits(), groups).processes == 2
    assert limits_of(SpawnAccount("bob", 1001, 1001, (), "/", "/bin/sh"), Limits(), groups) == Limits()


def test_rlimits_need_no_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mep.root.kernel.cgroup.can_group", lambda: False)
    limits = Limits(open_files=100, file_size=4096, processes=20)
    assert cgroup_support.problem([limits]) == ""
    assert [value for _, value in rlimits(limits)] == [100, 4096, 20]
    gate = CgroupGate("site", "uep", SpawnAccount("alice", 1000, 1000, (), "/", "/bin/sh"), limits)
    assert gate.pipe is None and gate.admit(1, lambda: 1.0) is None


def test_a_host_without_what_is_needed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Limits(memory_max=1, person_cpu_max=1.0)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "need root" in cgroup_support.problem(wanted)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cgroup_support, "ROOT", str(tmp_path))
    assert "no cgroup v2" in cgroup_support.problem(wanted)
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert "lacks the controllers cpu" in cgroup_support.problem(wanted)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    monkeypatch.setattr(cgroup_support, "_SYSTEMD", str(tmp_path))
    monkeypatch.setattr(cgroup_support, "BUSCTL", str(tmp_path / "busctl"))
    assert "busctl is missing" in cgroup_support.problem(wanted)


def test_a_child_that_cannot_be_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr("mep.root.kernel.cgroup.enter", fail)
    gate = CgroupGate("site", "uep", SpawnAccount("alice", 1000, 1000, (), "/", "/bin/sh"), Limits(memory_max=1))
    with pytest.raises(SpawnFailed) as caught:
        gate.admit(1, lambda: 1.0)
    assert (caught.value.stage, caught.value.errno) == (StartStage.CGROUP, errno.EBUSY)
    gate.close()


@pytest.mark.parametrize(("name", "word"), [("site", "site"), ("my-site", "my\\x2dsite"), ("a.b_c", "a\\x2eb_c")])
def test_names_of_units(name: str, word: str) -> None:
    assert cgroup.unit_word(name) == word


@pytest.mark.parametrize(("size", "text"), [(512, "512 bytes"), (160 * 2**20, "160 MiB"), (3 * 2**29, "1.5 GiB")])
def test_sizes_as_people_read_them(size: int, text: str) -> None:
    assert cgroup.size_text(size) == text


def _group(path: pathlib.Path, limits: Limits, memory: str, pids: str) -> cgroup.Cgroup:
    (path / "memory.events").write_text(memory)
    (path / "pids.events").write_text(pids)
    return cgroup.Cgroup(str(path), limits, ours=False)


@pytest.mark.parametrize(
    ("memory", "pids", "said"),
    [
        ("oom 0\noom_kill 0\n", "max 0\n", None),
        ("oom 2\noom_kill 1\n", "max 0\n", ("OUT_OF_MEMORY", "(limit 1 MiB)")),
        ("oom 0\noom_kill 1\n", "max 3\n", ("OUT_OF_MEMORY", "of all your processes together 2 MiB")),
        ("oom 0\noom_kill 0\n", "max 3\n", ("TOO_MANY_PROCESSES", "(limit 30)")),
    ],
)
def test_which_limit_it_was(tmp_path: pathlib.Path, memory: str, pids: str, said: tuple[str, str] | None) -> None:
    limits = Limits(memory_max=2**20, person_memory_max=2**21, tasks_max=30)
    group = _group(tmp_path, limits, memory, pids)
    group.look()
    found = group.excess()
    group.close()
    assert (found is None) == (said is None)
    if found and said:
        assert found[0] == said[0] and said[1] in found[1]


def test_a_worker_that_the_kernel_killed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "self").write_text("0::/group\n")
    (tmp_path / "group").mkdir()
    events = tmp_path / "group" / "memory.events"
    events.write_text("oom 0\noom_kill 4\n")
    (tmp_path / "group" / "memory.max").write_text(f"{160 * 2**20}\n")
    watch = MemoryWatch(str(tmp_path / "self"), str(tmp_path))
    assert watch.explain("killed by signal 9") == "killed by signal 9"
    events.write_text("oom 1\noom_kill 5\n")
    assert watch.explain("killed by signal 9") == "killed by signal 9: out of memory (limit 160 MiB)"
    assert watch.explain("killed by signal 9") == "killed by signal 9"
    assert MemoryWatch(str(tmp_path / "none")).explain("x") == "x"
