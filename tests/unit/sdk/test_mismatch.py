"""The person's message when their tasks run with another Python, or another version of a package of theirs."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from mep_sdk import encoding, importable, version_mismatch
from mep_sdk.function_record import read_record
from mep_sdk.result_decoding import settle
from mep_sdk.serialize import serialize_arguments, serialize_function
from mep_sdk.task_runner import run_task
from mep_wire import api
from mep_wire.states import TaskState

HERE = f"Python {sys.version.split()[0]} at {sys.prefix}"


@pytest.fixture(autouse=True)
def _other_pythons_are_forgotten() -> Iterator[None]:
    """Values travel in another form once another Python is known of."""
    known = set(importable.other_pythons)
    yield
    importable.other_pythons &= known


def identity(x):
    return x


def makes_class(x):
    class Local:
        value = x

    return Local


def package(directory: Path, monkeypatch: pytest.MonkeyPatch, version: str, source: str) -> None:
    """Install a package `mepodd` into a directory of the path, as pip would have recorded it."""
    for made in (directory / "mepodd", directory / f"mepodd-{version}.dist-info"):
        made.mkdir(parents=True)
    (directory / "mepodd" / "__init__.py").write_text(source)
    (directory / f"mepodd-{version}.dist-info" / "METADATA").write_text(f"Name: mepodd\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(directory), *[each for each in sys.path if "mepodd" not in each]])
    sys.modules.pop("mepodd", None)


def failed(payload: bytes, function: bytes) -> tuple[str, str]:
    """Return how it ends at a worker, and the message for the person."""
    outcome = run_task(function, payload, max_result_bytes=10_000)
    told = api.StreamedResult("t", int(TaskState.FAILED), outcome.code, outcome.text, outcome.payload)
    value, error = settle(told)
    assert value is None
    return outcome.code, str(error)


def test_a_module_that_is_not_there() -> None:
    payload = encoding.frame(encoding.PICKLE, b"\x80\x04cno_such_package.part\nThing\n.")
    code, text = failed(payload, serialize_function(identity))
    assert code == "DATA_UNREADABLE"
    assert f"no_such_package is not installed on the endpoint ({HERE})" in text


def test_a_module_that_the_function_needs_is_not_there() -> None:
    record = read_record(serialize_function(identity))
    wanting = msgspec.structs.replace(record, imports=(("np", "no_such_package"),))
    function = encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(wanting))
    code, text = failed(serialize_arguments((1,), {}), function)
    assert code == "FUNCTION_UNLOADABLE"
    assert f"no_such_package is not installed on the endpoint ({HERE})" in text


def test_a_package_of_another_version_is_named_with_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "mepodd-new", monkeypatch, "2.1", "class New:\n    pass\n")
    import mepodd  # type: ignore[import-not-found] # just made

    payload = encoding.frame(encoding.PICKLE, pickle.dumps(((mepodd.New(),), {})))
    package(tmp_path / "mepodd-old", monkeypatch, "1.5", "")
    outcome = run_task(serialize_function(identity), payload, max_result_bytes=10_000)
    assert outcome.code == "DATA_UNREADABLE"
    assert "mepodd 1.5 is installed on the endpoint" in outcome.text
    package(tmp_path / "mepodd-here", monkeypatch, "2.1", "")
    told = api.StreamedResult("t", int(TaskState.FAILED), outcome.code, outcome.text, b"")
    assert f"; here it is 2.1 (Python {sys.version.split()[0]})" in str(settle(told)[1])


def test_a_missing_module_that_is_installed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "mepodd-here", monkeypatch, "2.1", "")
    told = "The function cannot be loaded: mepodd is not installed on the endpoint (Python 3.99.1 at /env)"
    assert version_mismatch.with_own_version(told).startswith(f"{told}; here it is 2.1 ")
    assert version_mismatch.with_own_version("nothing of the kind") == "nothing of the kind"


def test_a_standard_module_and_an_attribute_of_nothing_known_say_no_more() -> None:
    assert version_mismatch.explain(ModuleNotFoundError("No module named 'distutils'", name="distutils"), "here") == ""
    assert version_mismatch.explain(AttributeError("x"), "here") == ""
    assert version_mismatch.explain(ValueError("x"), "here") == ""


@pytest.mark.parametrize("python", ["cpython-3.99", "pypy-3.11"])
def test_code_of_another_python_names_both(python: str) -> None:
    data = encoding.dumps(makes_class(3), local_by_value=True, for_this_python=True)
    assert data[3:4] == encoding.CLOUDPICKLE
    body = encoding.unframe(data, "test")[1]
    tag = f"{python} cloudpickle-9.9".encode()
    foreign = encoding.frame(encoding.CLOUDPICKLE, bytes([len(tag)]) + tag + bytes(body[1 + body[0] :]))
    code, text = failed(foreign, serialize_function(identity))
    assert code == "DATA_UNREADABLE"
    assert f"it holds code made by {python} and this is {encoding.PYTHON}" in text


def test_another_cloudpickle_is_named_where_it_may_be_why() -> None:
    tag = f"{encoding.PYTHON} cloudpickle-9.9".encode()
    broken = encoding.frame(
        encoding.CLOUDPICKLE, bytes([len(tag)]) + tag + b"\x80\x04ccloudpickle.cloudpickle\n_of_9\n."
    )
    code, text = failed(broken, serialize_function(identity))
    assert code == "DATA_UNREADABLE"
    assert "it was made with cloudpickle-9.9 and this is cloudpickle-" in text


def test_one_warning_for_each_endpoint_whose_python_differs() -> None:
    with pytest.warns(
        version_mismatch.PythonDiffers, match=rf"Endpoint e1 runs tasks with Python 3\.99 .* {version_mismatch.OWN}\."
    ):
        version_mismatch.warn_of_python("e1", "3.99.1")
    assert "3.99" in importable.other_pythons
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        version_mismatch.warn_of_python("e1", "3.99.2")
        version_mismatch.warn_of_python("e2", "")
        version_mismatch.warn_of_python("e2", f"{version_mismatch.OWN}.99")
    with pytest.warns(version_mismatch.PythonDiffers):
        version_mismatch.warn_of_python("e2", "3.99.1")


def test_an_import_inside_a_function_names_the_package_and_both_pythons() -> None:
    def uses() -> None:
        import msgspek  # type: ignore[import-not-found]  # noqa: F401

    outcome = run_task(serialize_function(uses), serialize_arguments((), {}), max_result_bytes=10_000)
    there = f"msgspek is not installed on the endpoint ({HERE}). It has "
    assert there in outcome.text
    told = api.StreamedResult("t", int(TaskState.FAILED), outcome.code, outcome.text, outcome.payload)
    _, error = settle(told)
    assert isinstance(error, ModuleNotFoundError)
    notes = "\n".join(error.__notes__)
    assert there in notes
    assert f"msgspec {msgspec.__version__}" in notes
    assert "mep-sdk describe ENDPOINT --packages" in notes
    assert f"here: msgspek is not installed ({HERE})" in notes


def test_an_import_of_a_name_that_a_package_lacks_names_its_version() -> None:
    def uses() -> None:
        from msgspec import no_such_name  # type: ignore[attr-defined]  # noqa: F401

    outcome = run_task(serialize_function(uses), serialize_arguments((), {}), max_result_bytes=10_000)
    assert f"msgspec {msgspec.__version__} is installed on the endpoint ({HERE})" in outcome.text
