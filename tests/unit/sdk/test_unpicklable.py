"""An error of pickling names the variable, the global or the attribute that does not pickle, and the way to it."""

from __future__ import annotations

import functools
import threading
import time
from typing import Any

import pytest

from mep_sdk.errors import ArgumentsUnserializable, FunctionUnserializable
from mep_sdk.serialize import serialize_arguments, serialize_function, serialize_result
from mep_sdk.unpicklable import path_to_fault
from mep_wire.errors import ResultUnserializable

GUARD = threading.Lock()


class Pool:
    def __init__(self) -> None:
        self.size = 3
        self.inner = {"workers": [1, threading.Lock()]}

    def work(self, x: int) -> int:
        return x


def uses_global(x: Any) -> Any:
    with GUARD:
        return x


def calls_it(x: Any) -> Any:
    return uses_global(x)


def in_closure() -> Any:
    handle = threading.Lock()

    def inner(x: Any) -> Any:
        return handle, x

    return inner


def with_default(x: Any, guard: Any = threading.Lock()) -> Any:  # noqa: B008
    return x, guard


FUNCTIONS = [
    (uses_global, "global GUARD, used by uses_global"),
    (calls_it, "global GUARD, used by uses_global"),
    (in_closure(), "variable handle of inner"),
    (with_default, "default of guard of with_default"),
    (Pool().work, "__self__.inner['workers'][1]"),
    (functools.partial(max, threading.Lock()), ".args[0]"),
]


@pytest.mark.parametrize(("function", "way"), FUNCTIONS)
def test_of_a_function(function: Any, way: str) -> None:
    with pytest.raises(FunctionUnserializable) as caught:
        serialize_function(function)
    assert way in caught.value.text
    assert "lock" in caught.value.text


@pytest.mark.parametrize(
    ("args", "kwargs", "way"),
    [
        ((1, threading.Lock()), {}, "(argument 2)"),
        ((), {"pool": Pool()}, "(argument pool.inner['workers'][1])"),
        (({"a": [0, {"b": Pool()}]},), {}, "(argument 1['a'][1]['b'].inner['workers'][1])"),
        ((in_closure(),), {}, "(variable handle of inner)"),
        (({1, 2}, {GUARD}), {}, "(an element of argument 2)"),
    ],
)
def test_of_arguments(args: Any, kwargs: Any, way: str) -> None:
    with pytest.raises(ArgumentsUnserializable) as caught:
        serialize_arguments(args, kwargs)
    assert way in caught.value.text


def test_of_a_result() -> None:
    with pytest.raises(ResultUnserializable) as caught:
        serialize_result({"pool": Pool()})
    assert "(result['pool'].inner['workers'][1])" in caught.value.text


def circle() -> Any:
    made: dict[str, Any] = {"lock": threading.Lock()}
    made["self"] = made
    return {"x": made}


class Hostile:
    def __reduce__(self) -> Any:
        raise SystemExit

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise SystemExit


@pytest.mark.parametrize("make", [circle, Hostile, lambda: [Hostile()], lambda: [GUARD] * 5000, lambda: [[0]] * 10**6])
def test_the_search_ends(make: Any) -> None:
    tried = []

    def pickles(value: Any) -> bool:
        tried.append(1)
        time.sleep(0)
        return False

    assert isinstance(path_to_fault(make(), "it", pickles), str)
    assert len(tried) <= 600
