"""Serialization strategies by name: a site's allowed ones are told by tags alone, and a person's choice is sent."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from mep_sdk import ComputeSerializer, encoding
from mep_sdk.batch import Batch
from mep_sdk.errors import ArgumentsUnserializable, FunctionUnserializable
from mep_sdk.function_record import read_record
from mep_sdk.function_serializer import load_function
from mep_sdk.serialize import load_arguments, load_result, serialize_arguments, serialize_function
from mep_sdk.shell import ShellFunction
from mep_sdk.strategies import CODE_STRATEGIES, Allowed, StrategyUnknown, name_of, result_ways
from mep_sdk.task_runner import run_task
from mep_wire.errors import SerializerNotAllowed
from mep_wire.ids import uuid7

GC = "globus_compute_sdk.serialize."
FACTOR = 3


def double(x: int) -> int:
    return 2 * x


def with_default(x: int, y: int = 5) -> int:
    return x + y


def by_factor(x: int) -> int:
    return x * FACTOR


def closure() -> Any:
    n = 4
    return lambda x: x + n


class Touch:
    """Its unpickling leaves a mark."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


# --- allowing -----------------------------------------------------------------------------------------


def allowed(*names: str) -> Allowed:
    return Allowed([GC + name for name in names])


@pytest.mark.parametrize("name", sorted(CODE_STRATEGIES))
def test_every_published_name_runs_a_plain_function(name: str) -> None:
    code = allowed(name, "DillDataBase64").function(serialize_function(double))
    assert load_function(code).call(21) == 42


@pytest.mark.parametrize("name", ["DillCodeSource", "DillCodeTextInspect", "PureSourceDill", "PureSourceTextInspect"])
def test_where_only_source_is_allowed_no_code_object_is_left(name: str) -> None:
    code = allowed(name, "JSONData").function(serialize_function(double))
    assert [each.code for each in read_record(code).codes] == [b""]
    assert run_task(code, serialize_arguments((4,), {}, as_json=True), max_result_bytes=1000).code == ""


@pytest.mark.parametrize("function", [with_default, by_factor])
def test_pickled_defaults_and_globals_are_values(function: Any) -> None:
    code = serialize_function(function)
    with pytest.raises(SerializerNotAllowed, match="pickled defaults or globals"):
        allowed("PureSourceDill", "JSONData").function(code)
    kept = allowed("PureSourceDill", "DillDataBase64").function(code)
    assert load_function(kept).call(2) == function(2)
    assert allowed("CombinedCode", "JSONData").function(code) == code


def test_what_has_no_source_is_refused_by_name() -> None:
    for thing, given in ((closure(), "cloudpickled code"), (ShellFunction("true"), "reference")):
        code = serialize_function(thing)
        with pytest.raises(SerializerNotAllowed) as caught:
            allowed("PureSourceDill", "JSONData").function(code)
        assert f"function was serialized ({given}). It accepts: PureSourceDill, JSONData." in caught.value.text
        assert allowed("DillCode", "JSONData").function(code)


def test_arguments_are_told_by_their_tag_and_never_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    payload = encoding.frame(encoding.PICKLE, pickle.dumps(Touch(str(mark))))
    with pytest.raises(SerializerNotAllowed, match=r"argument list was serialized \(pickle\)"):
        allowed("CombinedCode", "JSONData").arguments(payload)
    with pytest.raises(SerializerNotAllowed, match="pickle"):
        allowed("CombinedCode", "JSONData").arguments(encoding.request(["json"], payload))
    allowed("CombinedCode", "DillDataBase64").arguments(payload)
    assert not mark.exists()
    pickle.loads(encoding.unframe(payload, "test")[1])
    assert mark.exists(), "it would have been seen"


@pytest.mark.parametrize("payload", [b"", b"MEP", b"MEPr", b"MEPr\0\0\0\0\xff", b"nonsense"])
def test_nonsense_is_of_no_strategy(payload: bytes) -> None:
    with pytest.raises(SerializerNotAllowed, match="an unknown way"):
        allowed("CombinedCode", "JSONData").arguments(payload)


def test_a_function_that_is_none_is_left_for_the_worker_to_tell() -> None:
    assert allowed("CombinedCode", "JSONData").function(b"nonsense") == b"nonsense"


def test_wildcards_allow_everything() -> None:
    everything = Allowed(["globus_compute_sdk.*Code", "globus_compute_sdk.*Data"])
    for thing in (double, closure(), ShellFunction("true")):
        assert everything.function(serialize_function(thing)) == serialize_function(thing)
    for as_json in (False, True):
        everything.arguments(serialize_arguments((1,), {}, as_json=as_json))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([GC + "DillCodeSource"], "at least one strategy for functions and one for data"),
        ([GC + "JSONData"], "at least one"),
        ([], "at least one"),
        (["globus_compute_sdk.*"], "is not a serialization strategy; there are CombinedCode, "),
        (["somewhere.else.JSONData", GC + "CombinedCode"], "'somewhere.else.JSONData' is not"),
    ],
)
def test_lists_that_make_no_sense(names: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("*", r"\*")):
        Allowed(names)


# --- choosing -----------------------------------------------------------------------------------------


def test_json_goes_both_ways() -> None:
    payload = serialize_arguments((2,), {"y": 1}, as_json=True, result_ways=["json"])
    assert load_arguments(payload) == ((2,), {"y": 1})
    outcome = run_task(serialize_function(with_default), payload, max_result_bytes=1000)
    assert json.loads(bytes(encoding.unframe(outcome.payload, "result")[1])) == 3
    assert load_result(outcome.payload) == 3


def test_a_result_takes_the_first_way_that_takes_it() -> None:
    function = serialize_function(closure())
    for ways, kind in ((["json", "pickle"], encoding.JSON), (["pickle", "json"], encoding.PICKLE)):
        outcome = run_task(function, serialize_arguments((1,), {}, result_ways=ways), max_result_bytes=1000)
        assert outcome.payload[3:4] == kind
    bytes_ = serialize_function(bytes)
    outcome = run_task(bytes_, serialize_arguments((3,), {}, result_ways=["json"]), max_result_bytes=1000)
    assert outcome.code == "RESULT_UNSERIALIZABLE"
    assert "JSON" in outcome.text
    outcome = run_task(bytes_, serialize_arguments((3,), {}, result_ways=["json", "pickle"]), max_result_bytes=1000)
    assert load_result(outcome.payload) == bytes(3)


def test_what_json_does_not_hold_is_said_before_it_is_sent() -> None:
    with pytest.raises(ArgumentsUnserializable, match="not JSON serializable"):
        serialize_arguments((b"x",), {}, as_json=True)


def test_functions_by_strategy() -> None:
    assert [each.code for each in read_record(serialize_function(double, "PureSourceTextInspect")).codes] == [b""]
    with pytest.raises(FunctionUnserializable, match="as cloudpickled code, and not by PureSourceDill"):
        serialize_function(closure(), "PureSourceDill")


def test_a_batch_sends_as_its_client_says() -> None:
    batch = Batch(result_serializers=[GC + "JSONData"], serializer=ComputeSerializer(strategy_data="JSONData"))
    function_id = str(uuid7())
    batch.add(function_id, [1])
    (payload,) = batch.tasks[function_id]
    assert encoding.ways_wanted(payload) == ["json"]
    allowed("CombinedCode", "JSONData").arguments(payload)


def test_names() -> None:
    for name in (GC + "JSONData", GC + "concretes.JSONData", "mep_sdk.serialize.JSONData", "JSONData"):
        assert name_of(name) == "JSONData"
    assert result_ways([GC + "JSONData", "AllDataStrategies"]) == ["json", "pickle"]
    with pytest.raises(StrategyUnknown, match="is for functions"):
        result_ways(["CombinedCode"])
    with pytest.raises(ValueError, match="is for data"):
        ComputeSerializer("JSONData")
    with pytest.raises(ValueError, match="is for functions"):
        ComputeSerializer(strategy_data="DillCode")


def test_a_damaged_request_is_said_to_be_damaged() -> None:
    body = b"\x04json" + serialize_arguments((1,), {})
    damaged = b"MEPr" + zlib.crc32(body + b"x").to_bytes(4, "big") + body
    outcome = run_task(serialize_function(double), damaged, max_result_bytes=1000)
    assert (outcome.code, "checksum" in outcome.text) == ("DATA_CORRUPT", True)
