"""What a task prints comes with its result, bounded, and goes to the worker's log as before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from typing import Any

import pytest

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt
from mep_sdk.result_decoding import output_of, settle
from mep_sdk.serialize import load_arguments, load_result, serialize_arguments, serialize_result, wants_output
from mep_sdk.task_output import MOST_BYTES
from mep_wire.api import StreamedResult
from mep_wire.states import TaskState

HEAD = """
import os, sys
from mep_sdk.function_serializer import serialize_function
from mep_sdk.serialize import serialize_arguments
from mep_sdk.task_runner import keep_output, run_task

keep_output()

def run(function, *args, wants=True, most=1 << 20):
    payload = serialize_arguments(args, {}, wants_output=wants)
    return run_task(serialize_function(function), payload, max_result_bytes=most)

"""
TAIL = """
    with open(sys.argv[1], "ab") as file:
        file.write(b"%d\\n%b\\n" % (len(outcome.payload), outcome.payload))
os._exit(0)  # the interpreter's own end complains of streams that were detached
"""


def ran(script: str) -> tuple[str, str, list[bytes]]:
    """Run a worker's part in a process of its own: return what its log gets of both streams, and the payloads."""
    with tempfile.NamedTemporaryFile() as file:
        command = [sys.executable, "-c", f"{HEAD}{textwrap.dedent(script)}\nfor outcome in outcomes:{TAIL}", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        data = file.read()
    payloads = []
    while data:
        size, _, rest = data.partition(b"\n")
        payloads.append(rest[: int(size)])
        data = rest[int(size) + 1 :]
    return done.stdout, done.stderr, payloads


def test_both_streams_come_back_and_are_in_the_log() -> None:
    out, err, (payload,) = ran("""
        def speak(name):
            print("hello", name)
            sys.stderr.write("beware\\n")
            return 3
        outcomes = [run(speak, "ada")]
    """)
    assert (out, err) == ("hello ada\n", "beware\n")
    assert output_of(payload) == ("hello ada\n", "beware\n")
    assert load_result(payload) == 3


def test_each_task_has_its_own() -> None:
    _, _, payloads = ran("""
        outcomes = [run(print, "one"), run(len, "abc"), run(print, "two")]
    """)
    assert [output_of(each)[0] for each in payloads] == ["one\n", "", "two\n"]
    assert payloads[1] == serialize_result(3)


def test_it_is_kept_where_the_task_fails() -> None:
    _, _, (payload,) = ran("""
        def fail():
            print("so far")
            raise KeyError("x")
        outcomes = [run(fail)]
    """)
    result = StreamedResult("t", int(TaskState.FAILED), "TASK_FAILED", "KeyError", payload)
    _, failure = settle(result)
    assert type(failure) is KeyError
    assert output_of(payload) == ("so far\n", "")


def test_a_failure_without_an_exception_of_its_own_keeps_its_text() -> None:
    payload = encoding.with_output(b"", [b"printed", b""])
    _, failure = settle(StreamedResult("t", int(TaskState.FAILED), "RESULT_TOO_LARGE", "it is too large", payload))
    assert failure is not None
    assert "it is too large" in str(failure)


def test_the_end_of_much_output_comes_back_with_a_note() -> None:
    out, _, (payload,) = ran(f"""
        def shout():
            for number in range({MOST_BYTES}):
                print(number)
        outcomes = [run(shout)]
    """)
    text, _ = output_of(payload)
    first, _, rest = text.partition("\n")
    assert len(rest) == MOST_BYTES
    assert out.endswith(rest)
    assert first == f"[{len(out) - MOST_BYTES:,} bytes came before; the worker's log at the site has more]"


@pytest.mark.parametrize(
    "body",
    ["sys.stdout.close()", "sys.stdout = None", "sys.stdout.detach()", "os.close(1)", "del sys.stdout"],
)
def test_a_task_may_do_anything_to_its_streams(body: str) -> None:
    """The worker puts them back, or ends: see the tests of a task's state."""
    _, _, payloads = ran(f"""
        def harm():
            {body}
            return 1
        outcomes = [run(harm), run(lambda: 2)]
    """)
    assert [load_result(each) for each in payloads] == [1, 2]


def test_streams_are_what_programs_expect() -> None:
    _, _, (payload,) = ran("""
        def use():
            import contextlib, io, logging, subprocess
            logging.getLogger("x").warning("by logging")
            sys.stdout.buffer.write(b"bytes\\n")
            subprocess.run(["echo", "of a program"], stdout=sys.stdout, check=True)
            with contextlib.redirect_stdout(io.StringIO()) as kept:
                print("hidden")
            return sys.stdout.fileno(), sys.stdout.isatty(), sys.stdout.encoding.lower(), kept.getvalue()
        outcomes = [run(use)]
    """)
    assert load_result(payload) == (1, False, "utf-8", "hidden\n")
    assert output_of(payload) == ("bytes\n", "by logging\n")


def test_callers_that_do_not_take_it_get_results_as_before() -> None:
    """An older SDK would not know the frame."""
    _, _, (payload,) = ran("""
        outcomes = [run(print, "hidden", wants=False)]
    """)
    assert payload == serialize_result(None)


def test_a_result_near_the_limit_goes_without() -> None:
    _, _, payloads = ran("""
        def large(size):
            print("x" * 100)
            return bytes(size)
        outcomes = [run(large, 900, most=1000), run(large, 700, most=1000)]
    """)
    assert [len(output_of(each)[0]) for each in payloads] == [0, 101]
    assert [len(load_result(each)) for each in payloads] == [900, 700]


def test_output_is_cut_to_what_a_large_result_leaves_room_for() -> None:
    _, _, payloads = ran("""
        def large(out, err, size):
            print(out)
            sys.stderr.write(err)
            return bytes(size)
        most = 1 << 20
        outcomes = [run(large, "x" * 60_000, "y" * errors, most - 20_000, most=most) for errors in (0, 100, 60_000)]
    """)
    for payload in payloads:
        out, err = output_of(payload)
        first, _, rest = out.partition("\n")
        assert "bytes came before; the worker's log" in first
        assert 9_000 < len(rest) == rest.count("x") + 1
        assert len(err) < 10_000 and err.endswith("y") == bool(err)
        assert len(payload) <= 1 << 20
        assert len(load_result(payload)) == (1 << 20) - 20_000


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("ways", [(), ("json",)])
def test_the_wish_is_no_part_of_the_arguments(as_json: bool, ways: Any) -> None:
    call: Any = ([1, "x"], {"key": [2]})
    payload = serialize_arguments(tuple(call[0]), call[1], as_json=as_json, result_ways=ways, wants_output=True)
    assert wants_output(payload)
    assert load_arguments(payload) == (tuple(call[0]), call[1])
    assert not wants_output(serialize_arguments(tuple(call[0]), call[1], as_json=as_json, result_ways=ways))


@pytest.mark.parametrize("cut", [b"", b"\0" * 7, b"\xff" * 8, b"\0\0\0\x05\0\0\0\x05abc"])
def test_a_damaged_frame_is_told(cut: bytes) -> None:
    damaged = encoding.frame(encoding.OUTPUT, cut)
    assert output_of(damaged) == ("", "")
    with pytest.raises(DataCorrupt):
        load_result(damaged)
    _, failure = settle(StreamedResult("t", int(TaskState.SUCCESS), "", "", damaged))
    assert isinstance(failure, DataCorrupt)
