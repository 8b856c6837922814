"""What JSON does not carry as it is, is refused where it was written, with the key that holds it."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mep_sdk import Client, Executor
from mep_sdk.batch import Batch
from mep_sdk.json_values import checked_json
from mep_wire.errors import UserConfigInvalid
from tests.unit.sdk.test_submitter_threads import Relay

URL = "https://relay.example.edu"


def nested() -> dict[str, Any]:
    made: dict[str, Any] = {}
    inner = made
    for _ in range(200):
        inner["a"] = inner = {}
    return made


def circle() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["self"] = made
    return made


REFUSED = [
    ({"limit": math.nan}, "['limit'] is nan"),
    ({"limit": math.inf}, "['limit'] is inf"),
    ({"limit": -math.inf}, "['limit'] is -inf"),
    ({"a": [1, {"b": math.nan}]}, "['a'][1]['b'] is nan"),
    ({"size": 2**70}, "['size'] is an integer beyond 64 bits"),
    ({"size": [-(2**63) - 1]}, "['size'][0] is an integer beyond 64 bits"),
    ({"data": b"bytes"}, "['data'] is of type bytes"),
    ({"when": datetime.datetime.now(datetime.UTC)}, "['when'] is of type datetime"),
    ({"price": decimal.Decimal(1)}, "['price'] is of type Decimal"),
    ({"id": uuid.uuid4()}, "['id'] is of type UUID"),
    ({"names": {"a", "b"}}, "['names'] is of type set"),
    ({"path": Path("/x")}, "is of type PosixPath"),
    ({(1, 2): 1}, "has the key (1, 2)"),
    ({None: 1}, "has the key None"),
    ({"a": {1: "x", "1": "y"}}, "['a'] has two keys that are one"),
    (nested(), "nested more than"),
    (circle(), "nested more than"),
]


def executor(**options: Any) -> Executor:
    return Executor(uuid.uuid4(), client=Client(URL, "secret"), **options)


def set_later(option: str, value: Any) -> None:
    setattr(executor(), option, value)


def change_later(option: str, value: Any) -> None:
    made = executor(**{option: {}})
    getattr(made, option).update(value)
    made.submit(len, "")


WAYS: list[Callable[[str, Any], object]] = [
    lambda option, value: executor(**{option: value}),
    set_later,
    change_later,
    lambda option, value: Batch(**{option: value}),
    lambda option, value: Client(URL, "secret").create_batch(**{option: value}),
]


@pytest.mark.parametrize(("value", "says"), REFUSED)
@pytest.mark.parametrize("option", ["user_endpoint_config", "resource_specification"])
@pytest.mark.parametrize("way", WAYS, ids=["made with", "set", "changed", "batch", "create_batch"])
def test_refused_with_the_key(way: Callable[[str, Any], object], option: str, value: Any, says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(says)) as caught:
        way(option, value)
    assert option in str(caught.value)


@pytest.mark.parametrize("value", [{"name": "\udc80"}, {"\udc80": 1}])
@pytest.mark.parametrize("option", ["user_endpoint_config", "resource_specification"])
@pytest.mark.parametrize("way", WAYS, ids=["made with", "set", "changed", "batch", "create_batch"])
def test_a_lone_surrogate(way: Callable[[str, Any], object], option: str, value: Any) -> None:
    with pytest.raises((ValueError, UserConfigInvalid), match="lone surrogate") as caught:
        way(option, value)
    assert option in str(caught.value)


class Kind(enum.StrEnum):
    FAST = "fast"


class Number(float):
    pass


def test_accepted() -> None:
    given = {"a": (1, 2.5, None, True), "k": Kind.FAST, "n": Number(3), "m": {5: 2**64 - 1, "x": -(2**63)}}
    made = checked_json(given, "it")
    assert made == {"a": [1, 2.5, None, True], "k": "fast", "n": 3.0, "m": {"5": 2**64 - 1, "x": -(2**63)}}
    assert [type(made[key]) for key in "kn"] == [str, float]


def test_a_change_is_noticed_though_its_json_is_the_same() -> None:
    made = executor(user_endpoint_config={"limit": None})
    made._session.client = Relay()  # type: ignore[assignment]  # nothing is sent
    assert made.user_endpoint_config is not None
    made.user_endpoint_config["limit"] = math.nan
    with pytest.raises(ValueError, match="limit"):
        made.submit(len, "")
