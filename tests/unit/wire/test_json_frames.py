"""Arguments and results as JSON: mep_wire's frames against the SDK's, which write and read all kinds."""

from __future__ import annotations

import pytest

from mep_sdk import serialize
from mep_wire.json_frames import json_arguments, json_result


def test_the_sdk_reads_the_arguments_and_the_wish_for_json() -> None:
    data = json_arguments([1, "ä", {"x": None}], {"y": [True]})
    assert serialize.load_arguments(data) == ((1, "ä", {"x": None}), {"y": [True]})
    assert serialize.result_ways_of(data) == ["json"]


def test_the_sdks_results_are_read() -> None:
    assert json_result(serialize.serialize_result({"a": [1.5, None]}, ["json"])) == {"a": [1.5, None]}


def test_other_results_are_not() -> None:
    whole = serialize.serialize_result(1, ["json"])
    for data in (b"", b"MEPj", serialize.serialize_result(1), whole[:-1] + b"2", whole[:8]):
        with pytest.raises(ValueError):
            json_result(data)
