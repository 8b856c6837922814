"""run_task: every way in which a task can end, and none that gets past it."""

from __future__ import annotations

import os
import sys
import threading
import traceback

import pytest

from mep_sdk.errors import RemoteError, RemoteTraceback
from mep_sdk.serialize import load_exception, load_result, serialize_arguments, serialize_function
from mep_sdk.task_runner import run_task
from mep_wire.errors import PayloadTooLarge

LIMIT = 1 << 20


def outcome_of(function, *args, max_result_bytes=LIMIT, **kwargs):
    return run_task(serialize_function(function), serialize_arguments(args, kwargs), max_result_bytes=max_result_bytes)


class Plain(Exception):
    pass


class TakesTwo(Exception):
    def __init__(self, what, where):
        super().__init__(f"{what} at {where}")
        self.where = where


class Unpicklable(Exception):
    def __init__(self):
        super().__init__("has a lock")
        self.lock = threading.Lock()

    def __reduce__(self):
        raise TypeError("no")


class Gone(BaseException):
    pass


def fail(kind, *args):
    raise kind(*args)


def fail_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise Plain("outer") from error


def test_success():
    outcome = outcome_of(lambda a, *, b: [a, b], 1, b="x")
    assert (outcome.code, outcome.text) == ("", "")
    assert load_result(outcome.payload) == [1, "x"]


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (Plain, ("hey",)),
        (ValueError, (1, 2)),
        (TakesTwo, ("crash", "node 3")),
        (FileNotFoundError, (2, "no file", "/x")),
    ],
)
def test_exceptions_arrive_as_their_own_type(kind, args):
    outcome = outcome_of(fail, kind, *args)
    assert outcome.code == "TASK_FAILED"
    assert outcome.text.endswith(str(kind(*args)))
    error = load_exception(outcome.payload)
    assert type(error) is kind
    assert str(error) == str(kind(*args))


def test_attributes_survive():
    assert load_exception(outcome_of(fail, TakesTwo, "crash", "node 3").payload).where == "node 3"


def test_project_errors_survive():
    error = load_exception(outcome_of(fail, lambda: PayloadTooLarge(what="x", size=3, limit=2)).payload)
    assert type(error) is PayloadTooLarge
    assert "3 bytes" in str(error)


def test_remote_traceback_is_in_the_text():
    error = load_exception(outcome_of(fail_with_cause).payload)
    assert isinstance(error.__cause__, RemoteTraceback)
    shown = "".join(traceback.format_exception(error))
    for part in ("fail_with_cause", 'raise Plain("outer") from error', "KeyError: 'missing'", "remote traceback"):
        assert part in shown
    assert "mep_sdk/task_runner.py" not in shown


def test_the_remote_traceback_is_printed_once_and_whole_in_both_places():
    error = load_exception(outcome_of(fail_with_cause).payload)
    assert "".join(traceback.format_exception(error)).count('raise Plain("outer") from error') == 1
    for text in (str(error.__cause__), "".join(error.__notes__)):
        assert 'raise Plain("outer") from error' in text
        frames = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
        assert all("fail_with_cause" in frame for frame in frames)


def test_tracebacks_show_lines_whose_file_is_elsewhere(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("\n\ndef broken():\n    return 1 / 0  # here\n")
    space = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    code = serialize_function(space["broken"])
    path.unlink()
    error = load_exception(run_task(code, serialize_arguments((), {}), max_result_bytes=LIMIT).payload)
    assert "return 1 / 0  # here" in str(error.__cause__)


def test_a_class_whose_instances_do_not_pickle_comes_with_its_text():
    error = load_exception(outcome_of(fail, Unpicklable).payload)
    assert type(error) is Unpicklable
    assert str(error) == "has a lock"
    assert not hasattr(error, "lock")


def test_what_cannot_be_rebuilt_is_named():
    outcome = outcome_of(fail, Gone)
    error = load_exception(outcome.payload)
    assert isinstance(error, RemoteError)
    assert error.type_name.endswith(Gone.__name__)
    assert "Traceback" in error.remote_traceback


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_ends_the_worker(kind):
    outcome = outcome_of(fail, kind)
    assert outcome.code == "TASK_FAILED"
    error = load_exception(outcome.payload)
    assert isinstance(error, RemoteError)  # raised as itself it would end the person's own script
    assert error.type_name == kind.__name__


def test_sys_exit():
    assert outcome_of(lambda: sys.exit(3)).code == "TASK_FAILED"


def test_wrong_arguments_are_the_tasks_failure():
    assert "TypeError" in outcome_of(lambda a: a).text


@pytest.mark.parametrize("make", [threading.Lock, lambda: (i for i in range(3)), lambda: sys._getframe()])
def test_unserializable_result(make):
    outcome = outcome_of(make)
    assert outcome.code == "RESULT_UNSERIALIZABLE"
    assert "cannot pickle" in outcome.text


def test_a_result_whose_pickling_exits():
    class Nasty:
        def __reduce__(self):
            raise SystemExit(1)

    assert outcome_of(Nasty).code == "RESULT_UNSERIALIZABLE"


def test_too_large_result():
    outcome = outcome_of(lambda: bytes(2000), max_result_bytes=1000)
    assert outcome.code == "RESULT_TOO_LARGE"
    assert "1000 allowed" in outcome.text
    assert outcome.payload == b""


def test_too_large_exception_keeps_name_and_text():
    outcome = outcome_of(fail, ValueError, "x" * 5000, max_result_bytes=1000)
    error = load_exception(outcome.payload)
    assert type(error) is ValueError
    assert str(error) == "x" * 5000


def test_exception_whose_text_fails():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert outcome_of(fail, Mute).code == "TASK_FAILED"


def test_deep_recursion():
    def down(n):
        return down(n + 1)

    outcome = outcome_of(down, 0)
    assert "RecursionError" in outcome.text
    assert type(load_exception(outcome.payload)) is RecursionError


@pytest.mark.parametrize("function", [b"", b"junk", serialize_arguments((), {})])
def test_what_is_no_function(function):
    assert run_task(function, serialize_arguments((), {}), max_result_bytes=LIMIT).code == "FUNCTION_UNLOADABLE"


def test_a_module_that_exits_when_imported(tmp_path, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    module = tmp_path / "site-packages" / "exits_at_import.py"
    module.write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(str(module.parent))
    import exits_at_import

    code = serialize_function(exits_at_import.f)
    monkeypatch.delitem(sys.modules, "exits_at_import")
    module.write_text("raise SystemExit(4)  # now\n")
    os.utime(module, (1, 1))
    outcome = run_task(code, serialize_arguments((), {}), max_result_bytes=LIMIT)
    assert outcome.code == "FUNCTION_UNLOADABLE"
    assert "SystemExit" in outcome.text


@pytest.mark.parametrize("payload", [b"", b"junk", serialize_function(fail), serialize_arguments((), {})[:-1]])
def test_damaged_arguments(payload):
    assert run_task(serialize_function(fail), payload, max_result_bytes=LIMIT).code == "DATA_CORRUPT"


@pytest.mark.parametrize("filename", ["n" * 5000, "/proc/1/root/hidden/script.py", "<string>"])
def test_a_source_file_that_cannot_be_looked_at_does_not_end_the_worker(filename):
    # A checkout in a directory that the worker's account may not enter answers EACCES, a long name ENAMETOOLONG.
    scope = {"__name__": "__main__"}
    exec(compile("def broken():\n    return {}['elsewhere']\n", filename, "exec"), scope)
    assert outcome_of(scope["broken"]).code == "TASK_FAILED"
