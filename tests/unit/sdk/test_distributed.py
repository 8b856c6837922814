"""The client for scripts written for Dask, over an executor of the standard library's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mep_sdk.distributed import Client, as_completed, wait

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


@pytest.fixture
def client() -> Iterator[Any]:
    with ThreadPoolExecutor(2) as executor, Client(executor=executor) as made:  # type: ignore[arg-type]
        yield made
        assert executor.submit(int).result() == 0, "an executor that was given stays open"


def test_gather_keeps_the_kind_of_what_holds_futures(client: Any) -> None:
    one, two = client.map(abs, [-1, -2])
    assert client.gather([one, two]) == [1, 2]
    assert client.gather((one, two)) == (1, 2)
    assert client.gather({"a": one, "b": [two, 5]}) == {"a": 1, "b": [2, 5]}
    assert client.gather({one, two}) == {1, 2}
    assert client.gather(iter([one])) == [1]
    assert client.gather(one) == 1


def test_a_failure_is_raised_or_left_out(client: Any) -> None:
    futures = client.map(int, ["1", "x", "3"])
    with pytest.raises(ValueError, match="'x'"):
        client.gather(futures)
    assert client.gather(futures, errors="skip") == [1, 3]
    assert client.gather({"a": futures[1], "b": futures[2]}, errors="skip") == {"b": 3}
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        client.gather(futures, errors="ignore")


def test_keywords_go_to_the_function(client: Any) -> None:
    assert client.gather(client.map(int, ["11", "22"], base=3)) == [4, 8]


def test_waiting(client: Any) -> None:
    futures = client.map(abs, [-1, -2])
    assert {each.result() for each in as_completed(futures)} == {1, 2}
    assert wait(futures).not_done == set()


@pytest.mark.parametrize("wrong", [{}, {"endpoint_id": ENDPOINT, "executor": object()}])
def test_wrong_arguments_say_what_is_right(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="ENDPOINT_ID"):
        Client(**wrong)
