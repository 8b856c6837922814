"""A function that uses something else than before is sent again; one that does not, once."""

from __future__ import annotations

import functools
import gc
import threading
import time
import weakref
from typing import Any
from uuid import uuid4

import pytest

from mep_sdk import Client, Executor
from mep_sdk.captured import Captured
from mep_sdk.function_serializer import load_function
from mep_sdk.serialize import load_arguments
from mep_sdk.submitter import Function

STEP = 1
TABLE = {"a": 1}


def adds(x):
    return x + STEP


def calls(x):
    return adds(x)


def looks_up(x):
    return x + TABLE["a"]


def has_default(x, by=2):
    return x * by


def recurses(x):
    return 0 if x == 0 else recurses(x - 1) + STEP


class Scale:
    def __init__(self, by):
        self.by = by

    def times(self, x):
        return self.by * x

    @classmethod
    def name(cls, x):
        return cls.__name__ + x


@pytest.fixture
def executor(monkeypatch):
    made: Any = Executor(uuid4(), client=Client("https://relay.example.edu", "secret"))
    made.__dict__["sent"] = []

    def submit(target, function: Function, payload, *, live=False, only_json=False):
        made.sent.append((function, payload))
        return type("Future", (), {})()

    monkeypatch.setattr(made._session, "submit", submit)
    return made


def ran(executor) -> Any:
    """The value of the last submission, as a worker makes it."""
    function, payload = executor.sent[-1]
    args, kwargs = load_arguments(payload)
    return load_function(function.body.function_code).call(*args, **kwargs)


def registered(executor) -> int:
    return len({id(function) for function, _ in executor.sent})


@pytest.mark.parametrize("function", [adds, calls, recurses])
def test_a_replaced_global_is_noticed(executor, function, monkeypatch) -> None:
    executor.submit(function, 1)
    first = ran(executor)
    monkeypatch.setitem(globals(), "STEP", 100)
    executor.submit(function, 1)
    assert ran(executor) == first + 99
    executor.submit(function, 1)
    assert registered(executor) == 2


def test_a_changed_table_is_noticed(executor, monkeypatch) -> None:
    executor.submit(looks_up, 1)
    monkeypatch.setitem(TABLE, "a", 41)
    executor.submit(looks_up, 1)
    assert ran(executor) == 42
    monkeypatch.setitem(TABLE, "a", 1)
    executor.submit(looks_up, 1)
    assert ran(executor) == 2
    assert registered(executor) == 2  # the first is known by its bytes


def test_a_changed_default_and_closure_are_noticed(executor, monkeypatch) -> None:
    count = 1

    def inner(x):
        return x + count

    executor.submit(inner, 1)
    count = 5
    executor.submit(inner, 1)
    assert ran(executor) == 6
    executor.submit(has_default, 3)
    monkeypatch.setattr(has_default, "__defaults__", (10,))
    executor.submit(has_default, 3)
    assert ran(executor) == 30


def test_what_is_unchanged_is_registered_once(executor) -> None:
    for function in (adds, calls, looks_up, has_default, recurses):
        before = registered(executor)
        for number in range(50):
            executor.submit(function, number)
        assert registered(executor) == before + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda number: functools.partial(adds, number),
        lambda number: functools.partial(functools.partial(has_default, number), by=number),
        lambda number: functools.partial(Scale(number).times, number),
        lambda number: lambda x=number: x if False else functools.partial(adds, x)(),
    ],
    ids=["partial", "nested partial", "partial of a method", "lambda"],
)
def test_partials_register_one_function(executor, make) -> None:
    for number in range(1, 20):
        made = make(number)
        executor.submit(made)
    assert ran(executor) == made()  # once: to load a class by value here makes its methods anew
    if "lambda" not in repr(make(1)):
        assert registered(executor) == 1


@pytest.mark.parametrize("call", [lambda n: (Scale(n).times, 3), lambda n: (Scale.name, "x")])
def test_bound_methods_register_one_function(executor, call) -> None:
    for number in range(1, 20):
        method, argument = call(number)
        executor.submit(method, argument)
    assert registered(executor) == 1
    assert ran(executor) == method(argument)


class Odd:
    """Gives other bytes each time."""

    def __reduce__(self):
        return float, (str(time.perf_counter_ns()),)


ODD = Odd()


def uses_odd():
    return ODD


def test_what_never_gives_the_same_bytes_is_not_registered_each_time(executor) -> None:
    for _ in range(30):
        executor.submit(uses_odd)
    assert registered(executor) <= 2


def test_a_function_is_not_kept_alive(executor) -> None:
    def make():
        def inner(x):
            return inner if x else 0

        return inner

    function = make()
    gone = weakref.ref(function)
    executor.submit(function, 0)
    del function
    executor.sent.clear()
    gc.collect()
    assert gone() is None


def test_steady_functions_are_known() -> None:
    assert Captured(adds).steady and Captured(calls).steady and not Captured(looks_up).steady
    assert Captured(lambda: threading.Lock()).steady
