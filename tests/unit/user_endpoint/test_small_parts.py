"""Reports, logs, descriptors, back-off, pace: the parts with a rule of their own."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import uuid

import pytest

from mep.boundary.memfd import sealed_memfd
from mep_wire.errors import EndpointMisconfigured
from mep_wire.messages import ResultItem
from user_endpoint import inherited_fds
from user_endpoint.bounded_log import BoundedFile, BoundedLog
from user_endpoint.engines.process_pool.engine import describe_status
from user_endpoint.engines.process_pool.task_durations import DEEP, DEPTH, TaskDurations
from user_endpoint.function_store import Functions
from user_endpoint.keeper_report import MAX_REPORT_BYTES, Reporter, StartFailure
from user_endpoint.lifecycle.setup_commands import run_commands, setup_limit_s
from user_endpoint.task_admission import FunctionList, function_lists
from user_endpoint.user_endpoint import RESULT_BATCH_BYTES, in_batches
from user_endpoint.worker_init import told
from user_endpoint.workers.worker import FunctionCache


def test_reports_are_one_datagram_of_clean_lines() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reporter = Reporter(theirs.fileno())
    reporter.ready()
    assert ours.recv(9999) == b"READY"
    reporter.failed(StartFailure("HOME_UNUSABLE", "bad\nhome\x1b[1m", "x" * 9999))
    data = ours.recv(9999)
    assert len(data) <= MAX_REPORT_BYTES
    assert data.split(b"\n")[:3] == [b"FAILED", b"HOME_UNUSABLE", b"bad home [1m"]
    assert len(data.split(b"\n")) == 4
    reporter.ended("IDLE", "no task")
    assert ours.recv(9999) == b"ENDED\nIDLE\nno task"
    ours.close()
    reporter.ready()  # without a reader nothing happens
    theirs.close()


def test_sealed_documents_are_read_and_others_refused(tmp_path: pathlib.Path) -> None:
    assert inherited_fds.read_and_close(sealed_memfd("x", b"data"), 10) == b"data"
    with pytest.raises(inherited_fds.NotInherited, match="cap 3"):
        inherited_fds.read_and_close(sealed_memfd("x", b"data"), 3)
    with pytest.raises(inherited_fds.NotInherited, match="seals"):
        inherited_fds.read_and_close(os.memfd_create("x", os.MFD_ALLOW_SEALING), 10)
    (tmp_path / "file").write_bytes(b"data")
    plain = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(inherited_fds.NotInherited):
        inherited_fds.read_and_close(plain, 10)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(plain)  # closed either way
    with pytest.raises(inherited_fds.NotInherited):
        inherited_fds.check_report_channel(999)


def test_log_lines_cannot_be_forged(tmp_path: pathlib.Path) -> None:
    log = BoundedLog(BoundedFile(str(tmp_path / "log")))
    log.info("hello\nworld", name="a\nb\x1b")
    log.debug("not wanted")
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 1
    assert 'hello\\nworld name="a\\nb\\x1b"' in text
    assert f"mep-uep[{os.getpid()}]" in text


def test_a_log_takes_no_more_than_twice_its_limit(tmp_path: pathlib.Path) -> None:
    out = BoundedFile(str(tmp_path / "log"), limit=1000)
    for number in range(200):
        out.write(b"%050d\n" % number)
    out.write(b"x" * 5000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1"]


def test_what_others_print_to_a_bounded_file_is_bounded_too(tmp_path: pathlib.Path) -> None:
    out = BoundedFile(str(tmp_path / "log"), limit=1000)
    stand_in = os.dup(out.fileno())  # as descriptor 1 is
    out.stand_for(stand_in)
    for _ in range(50):
        os.write(stand_in, b"x" * 900)
        out.trim()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    os.write(stand_in, b"y" * 50_000)
    out.write(b"a line\n")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000
    os.write(stand_in, b"last words\n")
    out.trim()
    assert (tmp_path / "log").read_bytes() == b"a line\nlast words\n"
    os.close(stand_in)


def test_a_log_is_no_way_to_another_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic"):
        BoundedFile(str(tmp_path / "log"))


def test_pace_needs_a_measurement_before_it_calls_anything_short() -> None:
    pace = TaskDurations()
    assert not pace.is_short("f")
    pace.measured("f", 0.001)
    assert pace.is_short("f")
    for _ in range(20):
        pace.measured("f", 1.0)
    assert not pace.is_short("f")


def test_the_shorter_tasks_are_the_more_wait_at_a_worker() -> None:
    pace = TaskDurations()
    assert pace.depth("f") == 0, "it may be long"
    for seconds, most in ((0.0001, DEEP), (0.005, DEPTH), (1.0, 0)):
        for _ in range(40):
            pace.measured("f", seconds)
        assert pace.depth("f") == most


def test_look_ahead_grows_for_short_tasks_only() -> None:
    pace = TaskDurations()
    assert pace.look_ahead(2, 256) == 4
    for _ in range(200):
        pace.measured("f", 0.00001)
    assert pace.look_ahead(2, 256) == 512


def test_function_cache_forgets_the_oldest_but_never_the_newest() -> None:
    cache = FunctionCache(limit_bytes=10)
    cache.add("a", b"x" * 6)
    cache.add("b", b"x" * 6)
    assert cache.get("a") is None
    cache.add("c", b"x" * 50)
    assert cache.get("c") == b"x" * 50


def test_results_are_batched_by_size() -> None:
    big = ResultItem(1, "t", "", "", b"x" * (RESULT_BATCH_BYTES // 2 + 1))
    assert [len(batch) for batch in in_batches([big] * 3)] == [1, 1, 1]
    small = ResultItem(1, "t", "", "", b"x")
    assert [len(batch) for batch in in_batches([small] * 3)] == [3]
    assert list(in_batches([])) == []


def test_allow_lists_intersect() -> None:
    one, two = (str(uuid.UUID(int=number)) for number in (1, 2))
    pins = {one: b"1" * 32, two: b"2" * 32}
    digest = "sha256:" + "AB" * 32
    assert function_lists(None, None, pins) == ()
    assert function_lists([], None, {}) == (FunctionList(frozenset(), {}),)
    assert function_lists([one, digest], [two], pins) == (
        FunctionList(frozenset({b"\xab" * 32}), {one: b"1" * 32}),
        FunctionList(frozenset(), {two: b"2" * 32}),
    )
    with pytest.raises(EndpointMisconfigured) as refused:
        function_lists(None, [digest, one], {two: b"2" * 32})
    assert f"no code is pinned for {one}" in refused.value.detail


def test_wait_statuses_are_told_to_people() -> None:
    assert describe_status(3 << 8) == "it exited with status 3"
    assert describe_status(11) == "it was killed by SIGSEGV (11)"
    assert describe_status(9) == "it was killed by SIGKILL (9)", "who sent it is not known"


def test_no_function_is_forgotten_however_many_come(tmp_path: pathlib.Path) -> None:
    functions = Functions(str(tmp_path), memory_bytes=100)
    for number in range(20):
        functions.add(str(number), b"%d" % number * 30)
    assert functions.get("0") == b"0" * 30
    assert [functions.get(str(number)) for number in range(20)] == [b"%d" % number * 30 for number in range(20)]
    assert functions.get("other") is None
    functions.close()
    assert not list(tmp_path.iterdir())


def test_functions_stay_in_memory_where_the_disk_refuses(tmp_path: pathlib.Path) -> None:
    functions = Functions(str(tmp_path / "none"), memory_bytes=100)
    for number in range(20):
        functions.add(str(number), b"%d" % number * 30)
    assert [functions.get(str(number)) for number in range(20)] == [b"%d" % number * 30 for number in range(20)]


def test_commands_run_in_their_directory_and_failures_say_which(tmp_path: pathlib.Path) -> None:
    run_commands("endpoint_setup", None, str(tmp_path), 1)
    run_commands("endpoint_setup", "pwd > here\nexit 0", str(tmp_path), 5)
    assert (tmp_path / "here").read_text().strip() == str(tmp_path)
    with pytest.raises(StartFailure) as failed:
        run_commands("endpoint_setup", "exit 7", str(tmp_path), 5)
    assert failed.value.detail.startswith("endpoint_setup: ended with status 7")
    assert failed.value.code == "ENDPOINT_MISCONFIGURED"
    assert "endpoint_setup ended with status 7" in failed.value.public  # it may be the person's own
    assert "exit 7" not in failed.value.public
    with pytest.raises(StartFailure) as killed:
        run_commands("endpoint_setup", "kill -KILL $$", str(tmp_path), 5)
    assert killed.value.code == "START_INTERRUPTED"
    assert "a command of endpoint_setup was killed by SIGKILL" in killed.value.public
    with pytest.raises(StartFailure) as slow:
        run_commands("endpoint_teardown", "sleep 60", str(tmp_path), 0.1)
    assert "took over 0.1 s" in slow.value.detail


HEAVY = {"asyncio", "ctypes", "dataclasses", "inspect", "logging", "parsl", "pathlib", "subprocess", "tempfile"}
"""What costs each idle user endpoint milliseconds and megabytes, and its process engine does not need."""


def test_what_every_user_endpoint_loads_is_light() -> None:
    parts = ["startup", "user_endpoint", "event_loop", "result_spool"]
    parts += ["engines.process_pool.engine", "engines.start_journals"]
    code = f"import user_endpoint.main, {', '.join('user_endpoint.' + part for part in parts)}, mep_link.client"
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_little_is_loaded_when_the_fork_server_is_forked() -> None:
    code = "import user_endpoint.main, user_endpoint.startup, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True)
    assert not {"zmq", "jinja2", "yaml", "jsonschema"} & set(done.stdout.split())


def test_endpoint_setup_gets_a_part_of_the_starts_time_and_is_named(tmp_path: pathlib.Path) -> None:
    assert setup_limit_s({}) == setup_limit_s({"caps": {"start_timeout_s": 60.0}}) == 45.0
    limit = setup_limit_s({"caps": {"start_timeout_s": 0.4}})
    with pytest.raises(StartFailure) as caught:
        run_commands("endpoint_setup", "sleep 60", str(tmp_path), limit)
    assert "The commands of endpoint_setup took over 0.3 s" in caught.value.public
    assert "caps.start_timeout_s in config.yaml" in caught.value.detail


@pytest.mark.parametrize(
    ("setup", "out", "err", "status"),
    [
        ("trap 'echo bye' EXIT", "on\nbye\n", "", 0),
        ("exit 3", "", "worker_init: exit status 3\n", 3),
        ("false", "on\n", "", 0),
        ("activate() { return 1; }; activate", "", "worker_init: exit status 1, and it activated no environment\n", 1),
        ("export VIRTUAL_ENV=/v; : activate", "on\n", "", 0),
    ],
)
def test_a_failing_worker_init_is_told_and_a_trap_stays(setup: str, out: str, err: str, status: int) -> None:
    done = subprocess.run(
        ["/bin/bash", "-c", f"{told(setup)}echo on\n"], env={}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (out, err, status)
