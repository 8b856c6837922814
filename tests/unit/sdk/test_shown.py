"""What notebooks show of futures, executors and results, and the bar over an executor's tasks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mep_sdk import Executor, html, progress
from mep_sdk.futures import TaskFuture
from mep_sdk.shell import ShellResult
from mep_wire.waits import Wait

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


class Inline:
    """Calls callbacks at once."""

    def call_back(self, future: Any) -> None:
        future.call_callbacks()

    def look_soon(self) -> None:
        pass

    def held_up(self, _: str) -> None:
        """Nothing does."""


class Bar:
    """A bar as tqdm's, which keeps what it was told."""

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.count, self.closed = total, unit, 0, 0

    def update(self, count: int) -> None:
        self.count += count

    def close(self) -> None:
        self.closed += 1


def future() -> TaskFuture[Any]:
    return TaskFuture("the-task", "the-group", Inline())  # type: ignore[arg-type]


def text_of(shown: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", shown).split())


def test_a_future_says_where_it_is() -> None:
    one = future()
    one.function_name, one.endpoint_id = "add", ENDPOINT
    one.told("waiting-for-ep", Wait("ENDPOINT_OFFLINE", "the endpoint is offline"))
    said = text_of(one._repr_html_())
    for words in ("the-task", "add", ENDPOINT, "pending", "the endpoint is offline"):
        assert words in said
    one.resolve(3, None)
    assert "returned int" in text_of(one._repr_html_())


@pytest.mark.parametrize("evil", ["<script>x()</script>", "\x1b[31m<b>", '"><img src=x>'])
def test_text_of_tasks_is_no_html(evil: str) -> None:
    one = future()
    one.function_name = evil
    for shown in (one._repr_html_(), ShellResult(evil, evil, evil, 1)._repr_html_()):
        assert not re.search(r"<(script|b|img)", shown)
        assert "\x1b" not in shown


def test_a_result_shows_the_end_of_its_output() -> None:
    said = text_of(ShellResult("seq 100", "\n".join(map(str, range(100))) + "\n", "", 0)._repr_html_())
    assert "seq 100" in said
    assert said.endswith("98 99")
    assert "stderr" not in said
    assert " 5 " not in said


def test_an_executor_shows_counts_and_time() -> None:
    with Executor(ENDPOINT, label="sweep", relay_url="http://127.0.0.1:9", token="t") as executor:
        said = text_of(executor._repr_html_())
    assert "Executor sweep" in said
    assert f"endpoint {ENDPOINT}" in said
    assert "tasks none" in said
    assert "elapsed 0.0 s" in said


def test_the_bar_is_divided_as_tasks_are() -> None:
    shown = html.bar({"unsent": 0, "waiting": 1, "running": 1, "succeeded": 2, "failed": 0, "cancelled": 0})
    assert sorted(re.findall(r"width:([\d.]+)%", shown)) == ["25", "50"]


@pytest.mark.parametrize(("elapsed_s", "said"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1:01"), (3723.5, "1:02:03")])
def test_times_as_people_read_them(elapsed_s: float, said: str) -> None:
    assert html.seconds(elapsed_s) == said


def test_progress_counts_tasks_and_closes_with_the_last() -> None:
    made: list[Bar] = []

    def make(**options: Any) -> Bar:
        made.append(Bar(**options))
        return made[0]

    shown = progress.Progress(make)
    futures = [future(), future(), future()]
    for each in futures:
        shown.submitted(each)
    (bar,) = made
    assert (bar.total, bar.count, bar.unit) == (3, 0, "task")
    futures[0].resolve(1, None)
    futures[1].resolve(None, ValueError())
    shown.finish()
    assert (bar.count, bar.closed) == (2, 0)
    futures[2].mark_cancelled()
    assert (bar.count, bar.closed) == (3, 1)


def test_without_tqdm_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with pytest.raises(ValueError, match="pip install tqdm"):
        Executor(ENDPOINT, relay_url="http://127.0.0.1:9", token="t", progress=True)
