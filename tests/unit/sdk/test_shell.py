"""Commands as functions, run as a worker runs them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mep_sdk import MPIFunction, ShellFunction, ShellResult, encoding, function_serializer
from mep_sdk.errors import MpiUnavailable
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function
from mep_sdk.task_runner import run_task


def run(function, **kwargs) -> ShellResult:
    outcome = run_task(serialize_function(function), serialize_arguments((), kwargs), max_result_bytes=1 << 24)
    if outcome.code:
        raise load_exception(outcome.payload)
    return load_result(outcome.payload)


def test_a_command_with_values():
    result = run(ShellFunction("echo {greeting}; echo bad >&2; exit 3"), greeting="hello")
    assert (result.stdout, result.stderr, result.returncode) == ("hello\n", "bad\n", 3)
    assert result.exception_name == "subprocess.CalledProcessError"
    assert result.cmd.startswith("echo hello")


def test_success():
    result = run(ShellFunction("true"))
    assert (result.returncode, result.exception_name, result.stdout) == (0, None, "")


def test_walltime_ends_all_that_the_command_started(tmp_path):
    began = time.monotonic()
    result = run(ShellFunction(f"echo before; sleep 60 & echo $! > {tmp_path}/pid; wait", walltime=0.3))
    assert (result.returncode, result.stdout) == (124, "before\n")
    assert time.monotonic() - began < 10
    child = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while _alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_last_lines_come_back():
    assert run(ShellFunction("seq 1 5000", snippet_lines=3)).stdout == "4998\n4999\n5000\n"
    assert run(ShellFunction("seq 1 5", snippet_lines=0)).stdout == ""


def test_output_that_is_no_text():
    assert run(ShellFunction("printf 'a\\377b'")).stdout == "a\ufffdb"


def test_output_goes_to_files(tmp_path):
    function = ShellFunction("echo {n}", stdout=f"{tmp_path}/deep/out.txt")
    run(function, n=1)
    assert run(function, n=2).stdout == "1\n2\n"
    assert (tmp_path / "deep" / "out.txt").read_text() == "1\n2\n"


def test_a_missing_value_is_the_tasks_failure():
    with pytest.raises(KeyError, match="greeting"):
        run(ShellFunction("echo {greeting}"))


@pytest.mark.parametrize("command", ["awk '{print $1}' {path}", "find . -exec ls {} ;", "echo {path} {"])
def test_braces_of_the_commands_own_are_explained(command):
    with pytest.raises((KeyError, IndexError, ValueError), match=r"are doubled: \{\{ \}\}"):
        run(ShellFunction(command), path="/etc/hostname")
    assert run(ShellFunction("echo '{{print}}' {path}"), path="/").stdout == "{print} /\n"


def test_any_python_can_load_it():
    _, body = encoding.unframe(serialize_function(ShellFunction("true")), "function")
    record = function_serializer._decoder.decode(body)
    assert record.pickled[0][3:4] == encoding.PICKLE


def test_mpi_goes_through_the_launcher(monkeypatch):
    monkeypatch.setenv("PARSL_MPI_PREFIX", "env RANKS=4")
    assert run(MPIFunction("bash -c 'echo $RANKS'")).stdout == "4\n"
    monkeypatch.delenv("PARSL_MPI_PREFIX")
    with pytest.raises(MpiUnavailable):
        run(MPIFunction("hostname"))


def test_names_and_texts():
    assert ShellFunction("ls").__name__ == "ShellFunction: ls"
    assert MPIFunction("ls").__name__ == "MPIFunction: ls"
    result = run(ShellFunction("exit 2"))
    assert str(result) == "Command exit 2 returned with exit status: 2"
    assert repr(result) == "ShellResult(returncode=2, cmd='exit 2')"
