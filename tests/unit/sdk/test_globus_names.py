"""Scripts written for Globus Compute's SDK 4.x run with the import line changed: signatures, errors, strategies."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from mep_sdk import Client, Executor, ResultTooLarge, errors
from mep_sdk import serialize as ours
from mep_sdk.errors import (
    ComputeError,
    DeserializationError,
    MaxResultSizeExceeded,
    SerdeError,
    SerializationError,
    TaskExecutionFailed,
    TaskPending,
    VersionMismatch,
)
from mep_sdk.serialize import (
    AllCodeStrategies,
    AllDataStrategies,
    AllowlistWildcard,
    CombinedCode,
    ComputeSerializer,
    DillCode,
    DillDataBase64,
    JSONData,
    PureSourceTextInspect,
    SerializationStrategy,
    load_arguments,
    load_function,
    load_result,
    serialize_arguments,
    serialize_function,
)
from mep_sdk.source_code import serialize_source
from mep_sdk.task_runner import run_task
from mep_wire.errors import MepError, NotConfigured

URL = "https://relay.example.edu"
EP = str(uuid4())


class Transport:
    """Records requests, and answers what the test gives it."""

    def __init__(self, answer: Any = None) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answer = answer if answer is not None else {"function_uuid": EP}

    def request(self, method: str, path: str, body: bytes | None = None, **_: Any) -> bytes:
        self.asked.append((method, path, msgspec.msgpack.decode(body) if body else None))
        return msgspec.msgpack.encode(self.answer)

    def get(self, path: str) -> bytes:
        return self.request("GET", path)

    def post(self, path: str, body: Any, **_: Any) -> bytes:
        return self.request("POST", path, msgspec.msgpack.encode(body))


def client(answer: Any = None, **options: Any) -> Any:
    made: Any = Client(URL, "secret", **options)
    made.transport = Transport(answer)
    return made


def add(a, b=2):
    """Add."""
    return a + b


# --- signatures -----------------------------------------------------------------------------------------


def test_the_executor_takes_its_arguments_in_globus_computes_places() -> None:
    used = client()
    group = uuid4()
    made = Executor(
        EP, used, group, {"num_nodes": 1}, {"n": 1}, "label", 5, 443, 4, 16, ComputeSerializer(), [JSONData]
    )
    assert (str(made.endpoint_id), made.client, made.task_group_id) == (EP, used, group)
    assert (made.resource_specification, made.user_endpoint_config) == ({"num_nodes": 1}, {"n": 1})
    assert (made.label, made.batch_size, made.amqp_port, made.result_serializers) == ("label", 5, 443, [JSONData])


def test_attributes_of_globus_computes_executor_may_be_set() -> None:
    made = Executor(EP, client())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.amqp_port, made.batch_size = 5671, 128
    assert (made.amqp_port, made.batch_size) == (5671, 128)


def test_a_description_is_no_name() -> None:
    used = client()
    used.register_function(add, "what it does", {"a": 1}, True, "group")
    body = used.transport.asked[0][2]
    assert (body["function_name"], body["description"]) == ("add", "what it does")
    assert (body["metadata"], body["public"], body["group"]) == ({"a": 1}, True, "group")
    used.register_function(add, function_name="plus")
    assert used.transport.asked[1][2]["function_name"] == "plus"
    assert used.transport.asked[1][2]["description"] == "Add."


@pytest.mark.parametrize("strategy", ["JSONData", "globus_compute_sdk.serialize.JSONData", JSONData, JSONData()])
def test_a_strategy_may_be_a_name_a_class_or_an_instance(strategy: Any) -> None:
    assert client(data_serialization_strategy=strategy).serializer.as_json
    assert ComputeSerializer(strategy_data=strategy).as_json
    assert Executor(EP, client(), result_serializers=[strategy])._result_ways == ["json"]
    assert client().create_batch(result_serializers=[strategy]).prepare().result_serializers == ["JSONData"]


@pytest.mark.parametrize(
    "make",
    [lambda: ComputeSerializer(JSONData), lambda: ComputeSerializer(None, DillCode()), lambda: ComputeSerializer(3)],
)
def test_what_is_no_strategy_of_the_kind_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="is"):
        make()


@pytest.mark.parametrize(("role", "path"), [(None, "/v2/endpoints"), ("any", "/v2/endpoints?role=any")])
def test_the_role_is_sent(role: str | None, path: str) -> None:
    used = client([{"uuid": EP}])
    assert used.get_endpoints(role) == [{"uuid": EP}]
    assert used.transport.asked == [("GET", path, None)]


def test_endpoints_are_registered_changed_and_removed() -> None:
    used = client({"endpoint_id": EP})
    used.register_endpoint("name", None, multi_user=True, allowed_functions=[EP], link_public_key=b"k" * 32)
    used.register_endpoint("name", EP)
    used.delete_endpoint(EP)
    (post, put, delete) = used.transport.asked
    assert post[:2] == ("POST", "/v3/endpoints")
    assert (post[2]["endpoint_name"], post[2]["multi_user"], post[2]["allowed_functions"]) == ("name", True, [EP])
    assert put[:2] == ("PUT", f"/v3/endpoints/{EP}")
    assert delete[:2] == ("DELETE", f"/v2/endpoints/{EP}")


@pytest.mark.parametrize(
    ("allowed", "answer"),
    [(None, {"restricted": False, "functions": []}), ([EP], {"restricted": True, "functions": [EP]})],
)
def test_allowed_functions(allowed: Any, answer: Any) -> None:
    assert client({"allowed_functions": allowed}).get_allowed_functions(EP) == answer


@pytest.mark.parametrize("call", [lambda used: used.stop_endpoint(EP), lambda used: used.get_result_amqp_url()])
def test_what_mep_has_not_says_what_to_do(call: Any) -> None:
    with pytest.raises(errors.NotOffered, match=r"mep stop|get_batch_result"):
        call(client())


@pytest.mark.parametrize(("least", "fits"), [("0.0.1", True), ("999.0", False), (None, True)])
def test_version_check(least: str | None, fits: bool) -> None:
    used = client({"min_sdk_version": least, "min_ep_version": "2.0"})
    if fits:
        used.version_check()
        used.version_check("2.0.1")
        with pytest.raises(VersionMismatch, match=r"1\.9\.0"):
            used.version_check("1.9.0")
    else:
        with pytest.raises(VersionMismatch, match=r"999\.0"):
            used.version_check()


def test_after_logout_nothing_is_asked() -> None:
    made = Client(URL, "secret")
    made.logout()
    assert not made.settings.token
    with pytest.raises(NotConfigured, match="logged out"):
        made.get_endpoints()


def test_a_hardware_report_is_a_function_of_the_sdk() -> None:
    used = client()
    used.register_function = lambda function: EP
    used.run = lambda **options: SimpleNamespace(**options)
    assert used.get_worker_hardware_details(EP).function_id == EP
    from mep_sdk.hardware_report import hardware_report

    outcome = run_task(
        serialize_function(hardware_report), serialize_arguments(("Here",), {}), max_result_bytes=1 << 20
    )
    text = load_result(outcome.payload)
    assert text.startswith("Here\nnode: ") and "processors: " in text and "python: 3." in text


# --- source code ----------------------------------------------------------------------------------------

SOURCES = {
    "plain": ("def f(x):\n    return x + 1\n", (2,), 3),
    "with defaults": ("STEP = 4\ndef f(x, y=STEP):\n    return x + y\n", (2,), 6),
    "with a helper": ("import math\ndef g(x):\n    return math.sqrt(x)\ndef f(x):\n    return g(x) + 1\n", (9,), 4.0),
    "with a class": ("class A:\n    n = 3\n\ndef f(x):\n    return A.n * x\n", (2,), 6),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_function_given_as_source(name: str) -> None:
    source, args, expected = SOURCES[name]
    outcome = run_task(serialize_source(source, "f"), serialize_arguments(args, {}), max_result_bytes=1 << 20)
    assert load_result(outcome.payload) == expected
    used = client()
    assert used.register_source_code(source, "f", "described") == EP
    body = used.transport.asked[0][2]
    assert (body["function_name"], body["description"]) == ("f", "described")


@pytest.mark.parametrize(
    ("source", "says"), [("def f(:", "not Python"), ("x = 1", "no function of this name"), ("\0", "not Python")]
)
def test_source_that_cannot_be(source: str, says: str) -> None:
    with pytest.raises(SerializationError, match=says):
        client().register_source_code(source, "f")


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        *(errors.wire_errors.TaskFailed, errors.wire_errors.WorkerLost, errors.wire_errors.UserEndpointLost),
        *(errors.wire_errors.WalltimeExceeded, errors.wire_errors.TaskExpired, errors.wire_errors.FunctionUnloadable),
        *(errors.wire_errors.ResultTooLarge, errors.RemoteError, errors.MpiUnavailable),
    ],
)
def test_a_task_that_fails_at_the_site_is_a_task_execution_failure(kind: type[MepError]) -> None:
    error = kind(text="what happened")
    with pytest.raises(TaskExecutionFailed) as caught:
        raise error
    assert caught.value.remote_data == "what happened"
    assert isinstance(error, ComputeError)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (errors.FunctionUnserializable, SerializationError),
        (errors.ArgumentsUnserializable, SerializationError),
        (errors.wire_errors.ResultUnserializable, SerializationError),
        (errors.DataCorrupt, DeserializationError),
        (errors.DataUnreadable, DeserializationError),
        (errors.wire_errors.FunctionUnloadable, DeserializationError),
    ],
)
def test_errors_of_serialization(kind: type[MepError], base: type[Exception]) -> None:
    fields = {"name": "f", "what": "result", "where": "here", "reason": "it is odd"}
    error: Any = kind(**fields)
    assert isinstance(error, (base, SerdeError, ComputeError)) and isinstance(error, base)
    assert error.reason == "it is odd"
    assert kind(text="sent as text").reason == "sent as text"  # type: ignore[attr-defined]


def test_the_rest_of_the_eight() -> None:
    assert MaxResultSizeExceeded is ResultTooLarge
    assert issubclass(TaskPending, ComputeError) and issubclass(VersionMismatch, ComputeError)
    assert SerializationError("why").reason == "why"
    assert TaskExecutionFailed("data", "12.5").completion_t == "12.5"


# --- serialization --------------------------------------------------------------------------------------

CODE = ["CombinedCode", "AllCodeStrategies", "DillCode", "DillCodeSource", "DillCodeTextInspect", "PureSourceDill"]
DATA = ["DillDataBase64", "JSONData", "AllDataStrategies"]


@pytest.mark.parametrize("name", [*CODE, "PureSourceTextInspect"])
def test_functions_as_text(name: str) -> None:
    strategy = getattr(ours, name)()
    text = strategy.serialize(add)
    assert text.startswith(strategy.identifier) and strategy.for_code
    assert strategy.deserialize(text)(3, 4) == 7
    assert SerializationStrategy.get_cached_by_id(text[:3]).deserialize(text)(3, 4) == 7
    assert ComputeSerializer(strategy).deserialize(ComputeSerializer(strategy).serialize(add))(3, 4) == 7


@pytest.mark.parametrize("name", DATA)
def test_values_as_text(name: str) -> None:
    strategy = getattr(ours, name)()
    assert strategy.deserialize(strategy.serialize({"a": [1, 2.5, None]})) == {"a": [1, 2.5, None]}
    assert not strategy.for_code


def test_strategies_are_checked() -> None:
    function, args, kwargs = ComputeSerializer(PureSourceTextInspect(), JSONData()).check_strategies(add, 1, b=5)
    assert function(*args, **kwargs) == 6
    with pytest.raises(SerializationError):
        ComputeSerializer(strategy_data=JSONData).check_strategies(add, object())
    with pytest.raises(SerializationError):
        ComputeSerializer(PureSourceTextInspect).check_strategies(eval("lambda: 1"))


def test_texts_are_packed() -> None:
    serializer = ComputeSerializer()
    texts = ["", "a\nb", "12\n", serializer.serialize(3)]
    assert serializer.unpack_buffers(serializer.pack_buffers(texts)) == texts
    for bad in ("x", "5\nab", "-1\na", "1"):
        with pytest.raises(DeserializationError):
            serializer.unpack_buffers(bad)
    with pytest.raises(DeserializationError):
        serializer.unpack_and_deserialize(serializer.pack_buffers(["a"]))


def test_the_first_strategy_that_takes_a_value() -> None:
    text = ComputeSerializer.serialize_from_list({1, 2}, [JSONData, DillDataBase64()])
    assert ComputeSerializer().deserialize(text) == {1, 2}
    with pytest.raises(SerializationError, match="JSONData"):
        ComputeSerializer.serialize_from_list({1, 2}, [JSONData])


@pytest.mark.parametrize("bad", ["", "zz\nabc", "00\n!!", "00\nAAAA"])
def test_what_is_no_serialized_text(bad: str) -> None:
    with pytest.raises(DeserializationError):
        ComputeSerializer().deserialize(bad)


def test_only_allowed_strategies_are_read() -> None:
    text = DillDataBase64().serialize(1)
    for allowed in ([DillDataBase64], ["DillDataBase64"], [AllowlistWildcard.DATA], None):
        assert ComputeSerializer(allowed_deserializer_types=allowed).deserialize(text) == 1
    for allowed in ([JSONData], [AllowlistWildcard.CODE], [CombinedCode, AllDataStrategies, AllCodeStrategies]):
        with pytest.raises(DeserializationError, match="DillDataBase64 is not allowed"):
            ComputeSerializer(allowed_deserializer_types=allowed).deserialize(text)


def test_what_a_worker_gets_is_unchanged() -> None:
    assert load_arguments(serialize_arguments((1,), {"b": 2})) == ((1,), {"b": 2})
    assert load_function(serialize_function(add)).call(1) == 3
