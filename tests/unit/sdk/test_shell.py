"""Commands as functions, run as a worker runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mep_sdk import MPIFunction, ShellFunction, ShellResult, encoding, function_record
from mep_sdk.errors import MpiUnavailable
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function
from mep_sdk.task_runner import run_task
from tests.support.waiting import until


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
    result = run(ShellFunction(f"echo before; sleep 60 & echo $! > {tmp_path}/pid; wait", walltime=0.3))
    assert (result.returncode, result.stdout) == (124, "before\n")
    child = int((tmp_path / "pid").read_text())
    until("the end of the command's child", lambda: not _alive(child))


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
    record = function_record._decoder.decode(body)
    assert record.pickled[0][3:4] == encoding.PICKLE


def test_mpi_goes_through_the_launcher(monkeypatch):
    monkeypatch.setenv("PARSL_MPI_PREFIX", "env RANKS=4")
    assert run(MPIFunction("bash -c 'echo $RANKS'")).stdout == "4\n"
    monkeypatch.delenv("PARSL_MPI_PREFIX")
    with pytest.raises(MpiUnavailable):
        run(MPIFunction("hostname"))


def test_names_and_texts():
    assert ShellFunction("ls").__name__ == "ShellFunction"
    assert MPIFunction("ls").__name__ == "MPIFunction"
    assert ShellFunction("ls", name="list_files").__name__ == "list_files"
    result = run(ShellFunction("exit 2"))
    assert str(result) == "Command exit 2 returned with exit status: 2"
    assert repr(result) == "ShellResult(returncode=2, cmd='exit 2')"
    shown = str(run(ShellFunction("seq 1 20; echo trouble >&2; exit 3")))
    assert shown.startswith("Command seq 1 20; echo trouble >&2; exit 3 returned with exit status: 3")
    assert "20" in shown and "\n2\n" not in shown and ".stdout has more" in shown and "trouble" in shown


@pytest.mark.parametrize("size", [90_000, 131_072, 200_000, 3_000_000])
def test_a_command_of_any_size(size):
    result = run(ShellFunction(f": {'x' * size}; echo {{word}} $BASHPID | tr -d 0-9; exit 3"), word="done")
    assert (result.stdout.strip(), result.returncode) == ("done", 3)


def test_a_value_of_any_size():
    assert run(ShellFunction("echo {word} | wc -c"), word="x" * 500_000).stdout.strip() == "500001"


def test_a_long_command_reads_its_stdin_and_ends_with_its_walltime(tmp_path):
    long = f"# {'x' * 200_000}\n"
    (tmp_path / "in").write_text("given")
    assert run(ShellFunction(long + "cat", stdin=str(tmp_path / "in"))).stdout == "given"
    assert run(ShellFunction(long + "cat")).stdout == ""
    assert run(ShellFunction(long + "sleep 100", walltime=0.2)).returncode == 124


VALUES = [
    "plain",
    "two words",
    "it's",
    'say "x"',
    "$(echo run)",
    "`echo run`",
    "a; echo run",
    "a\nb",
    "$HOME",
    "\\",
    "a\\'b",
    "*",
    "",
    "#no",
    "-x",
    "~",
    "a&b|c>d",
    "{a,b}",
    "!1",
    "ümläut",
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(
    "command",
    [
        "printf %s {x}",
        "printf %s '{x}'",
        'printf %s "{x}"',
        "printf %s {x!s}",
        "true # don't\nprintf %s {x}",
        "true # don't\nprintf %s '{x}'",
        'v=$(printf %s {x}); printf %s "$v"',
        ": \\' \"'\"; printf %s {x}",
        'a={x}; printf %s "$a"',
        "cat <<<{x} | head -c -1",
        "[ $# = 0 ] && printf %s {x}",
    ],
)
def test_a_value_is_one_word_wherever_it_stands(command, value):
    assert run(ShellFunction(command), x=value).stdout == value


@pytest.mark.parametrize(
    "command",
    [
        "cat <<END\n{x}\nEND",
        'echo "$(echo {x})"',
        "echo $'a{x}'",
        'echo "`echo {x}`"',
        "cat <<'E'\n{x}\nE",
        "true # {x}",
        "echo \\{x}",
        "echo ${x}",
        "echo `echo {x}`",
        "echo $(( {x} ))",
        'echo "${x}"',
        'echo "${{HOME:-{x}}}"',
        'echo "${{HOME:-"{x}"}}"',
        'echo "a\\{x}"',
        "cat <{y|raw}\n{x}\nEND",
    ],
)
@pytest.mark.parametrize(
    "value", ["$(touch {path})", "`touch {path}`", "a[$(touch {path})]", "'; touch {path}; '", "\n touch {path}\n"]
)
def test_a_value_is_refused_where_it_cannot_be_quoted_for_certain(command, value, tmp_path):
    path = tmp_path / "made"
    with pytest.raises(ValueError, match=r"x\|raw"):
        run(ShellFunction(command), x=value.format(path=path), y="<END")
    assert not path.exists()
    run(ShellFunction(command), x="plain-1.5", y="<END")  # and this is not


def test_values_may_go_in_as_they_are():
    assert run(ShellFunction("printf '%s,' {x|raw} {x}"), x="a b").stdout == "a,b,a b,"
    assert run(ShellFunction("printf '%s,' {x} {n:03d}", quote=False), x="a b", n=7).stdout == "a,b,007,"
    assert run(ShellFunction("echo {n:>{width}|raw}".replace("|raw", "")), n=7, width=3).stdout == "  7\n"
    with pytest.raises(ValueError, match=r"x\|raw"):
        run(ShellFunction("echo {x|html}"), x="a")


def test_one_that_was_registered_before_values_were_quoted_runs_as_it_did():
    old = ShellFunction.__new__(ShellFunction)
    old.__dict__.update(cmd="printf '%s,' {x}", stdout=None, stderr=None, walltime=None, snippet_lines=10)
    assert run(old, x="a b").stdout == "a,b,"


def test_stdin():
    assert run(ShellFunction("cat", stdin=b"a\0b")).stdout == "a\0b"
    assert run(ShellFunction("cat", stdin="/dev/null")).stdout == ""
    with pytest.raises(FileNotFoundError):
        run(ShellFunction("cat", stdin="/no/such/file"))


def test_a_dict_instead_of_a_result():
    assert run(ShellFunction("echo a; exit 1", return_dict=True)) == {
        "cmd": "echo a; exit 1",
        "stdout": "a\n",
        "stderr": "",
        "returncode": 1,
        "exception_name": "subprocess.CalledProcessError",
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"walltime": -1}, "walltime is in seconds"),
        ({"walltime": float("nan")}, "walltime is in seconds"),
        ({"walltime": float("inf")}, "None for no limit"),
        ({"walltime": "10"}, "walltime is a number"),
        ({"walltime": True}, "walltime is a number"),
        ({"walltime": 10**400}, "walltime is in seconds"),
        ({"walltime": 1j}, "walltime is a number"),
        ({"snippet_lines": -1}, "snippet_lines is a number of lines"),
        ({"snippet_lines": "10"}, "snippet_lines is a number of lines"),
        ({"snippet_lines": 1.5}, "snippet_lines is a number of lines"),
        ({"stdin": 3}, "stdin is the name of a file on the endpoint or bytes"),
        ({"stdin": ""}, "stdin is the name of a file"),
        ({"stdin": bytearray(b"x")}, "stdin is the name of a file"),
        ({"stdout": 3}, "stdout is the name of a file"),
        ({"stderr": "a\0b"}, "stderr is the name of a file"),
        ({"name": "two words"}, "name is that of a Python function"),
        ({"name": "class"}, "name is that of a Python function"),
        ({"cmd": ["ls", "-l"]}, "command line such as"),
        ({"cmd": "a\0b"}, "NUL"),
    ],
)
@pytest.mark.parametrize("kind", [ShellFunction, MPIFunction])
def test_what_cannot_be_is_refused_where_it_is_written(kind, options, says):
    with pytest.raises((ValueError, TypeError), match=says):
        kind(**{"cmd": "ls", **options})


def test_options_may_be_what_means_the_same(tmp_path):
    import fractions

    function = ShellFunction("cat", stdin=tmp_path / "in", stdout=tmp_path / "out", walltime=fractions.Fraction(60))
    (tmp_path / "in").write_text("given")
    assert run(function).stdout == "given"
    assert (tmp_path / "out").read_text() == "given"
    assert type(function.walltime) is float


def test_a_value_may_be_called_self():
    assert run(ShellFunction('echo {self} "${{HOME}}"/{fn}'), self="a b", fn="c d").stdout.startswith("a b ")


def test_a_value_with_a_nul_is_the_tasks_failure():
    with pytest.raises(ValueError, match="NUL"):
        run(ShellFunction("echo {x}"), x="a\0b")
