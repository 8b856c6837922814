"""The executor for Parsl: options reach the task and do not stay, and wrong arguments say what is right."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from mep_sdk import Executor
from mep_sdk.parsl import MepExecutor

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"


class Recorder:
    """An executor that notes what each call would be submitted with."""

    def __init__(self) -> None:
        self.user_endpoint_config: Any = {"usual": 1}
        self.resource_specification: Any = None
        self.seen: list[tuple[Any, ...]] = []
        self.shut = False

    def submit(self, fn: Any, *args: Any, **kwargs: Any) -> Future[Any]:
        if fn is None:
            raise TypeError("no function")
        self.seen.append((args, kwargs, self.user_endpoint_config, self.resource_specification))
        future: Any = Future()
        future.task_id = "the-task"
        return future  # type: ignore[no-any-return]

    def shutdown(self, **_: Any) -> None:
        self.shut = True


def test_an_apps_resources_are_its_tasks_alone() -> None:
    recorder: Any = Recorder()
    campus = MepExecutor(executor=recorder, label="campus")
    given = {"num_nodes": 2, "user_endpoint_config": {"own": 2}}
    assert campus.submit(len, given, "abc").parsl_executor_task_id == "the-task"  # type: ignore[attr-defined]
    campus.submit(len, {}, "abc", key=1)
    with pytest.raises(TypeError):
        campus.submit(None, given)  # type: ignore[arg-type]
    campus.submit(len, {})
    assert recorder.seen == [
        (("abc",), {}, {"own": 2}, {"num_nodes": 2}),
        (("abc",), {"key": 1}, {"usual": 1}, None),
        ((), {}, {"usual": 1}, None),
    ]
    assert given == {"num_nodes": 2, "user_endpoint_config": {"own": 2}}, "Parsl passes it again for another attempt"


def test_an_executor_that_was_given_stays_open() -> None:
    recorder: Any = Recorder()
    MepExecutor(executor=recorder).shutdown()
    assert not recorder.shut


def test_its_own_executor_is_shut() -> None:
    campus = MepExecutor(ENDPOINT, relay_url="http://127.0.0.1:9", token="secret-token")
    assert "secret-token" not in repr(campus)
    campus.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        campus.submit(len, {}, "abc")


@pytest.mark.parametrize("wrong", [{}, {"endpoint_id": ENDPOINT, "executor": object()}, {"executor": object(), "x": 1}])
def test_wrong_arguments_say_what_is_right(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        MepExecutor(**wrong)


def test_it_is_typed_as_an_executor_of_ours() -> None:
    assert isinstance(MepExecutor(ENDPOINT, relay_url="http://127.0.0.1:9", token="t")._executor, Executor)
