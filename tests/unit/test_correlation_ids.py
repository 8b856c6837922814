"""A person quotes a correlation id, and a log has it: the id of a start, or else the task's own."""

from __future__ import annotations

import logging
import re

import pytest

from mep.boundary.errors import Refusal
from mep.boundary.messages import StartOutcome
from mep.root.monitor.start import level_of, outcome_of
from mep_sdk.result_decoding import settle
from mep_wire.api import StreamedResult
from mep_wire.errors import MepError, StartTimeout, UserEndpointLost, by_code
from mep_wire.states import TaskState
from relay.dispatch.task_fates import FATES, LossStep, why_failed

TASK = "0192f0c4-0000-7000-8000-000000000001"


@pytest.mark.parametrize("code", sorted(by_code()))
def test_a_task_that_fails_without_a_start_has_its_own_id(code: str) -> None:
    _, failure = settle(StreamedResult(TASK, TaskState.FAILED, code, "why", b""))
    assert isinstance(failure, MepError)
    assert (failure.code, failure.correlation_id) == (code, TASK)


@pytest.mark.parametrize("state", [TaskState.CANCELLED, TaskState.EXPIRED])
def test_so_has_one_that_was_ended_without_a_code(state: TaskState) -> None:
    _, failure = settle(StreamedResult(TASK, state, "", "", b""))
    assert isinstance(failure, MepError)
    assert failure.correlation_id == TASK


def test_a_start_that_failed_lends_the_task_its_id() -> None:
    _, failure = settle(StreamedResult(TASK, TaskState.FAILED, "START_FAILED", "no", b"", "c-1"))
    assert isinstance(failure, MepError)
    assert failure.correlation_id == "c-1"


@pytest.mark.parametrize("kind", [StartTimeout, UserEndpointLost])
@pytest.mark.parametrize("state", sorted(FATES[LossStep.GIVEN_UP]))
def test_tasks_that_end_for_one_reason_share_the_id_that_is_logged(kind: type[MepError], state: TaskState) -> None:
    error = kind(seconds=60, reason="gone", correlation_id="c-1")
    assert why_failed(state, error).correlation_id == "c-1"
    assert why_failed(state, error, doubtful=True).correlation_id == "c-1"


@pytest.mark.parametrize("code", [*Refusal, "ENDPOINT_MISCONFIGURED", "ENGINE_FAILED", "HOME_UNUSABLE", "UNKNOWN"])
def test_a_failed_start_is_never_info(code: str) -> None:
    assert level_of(outcome_of(code), code) in ("WARNING", "ERROR")
    assert level_of("dropped", "") == "WARNING"


@pytest.mark.parametrize("outcome", [StartOutcome.STARTED, StartOutcome.ALREADY_RUNNING, "joined"])
def test_a_start_that_worked_is_info(outcome: str) -> None:
    assert level_of(outcome, "") == "INFO"


def test_the_administrators_own_faults_are_errors() -> None:
    assert level_of(StartOutcome.REFUSED, "ENDPOINT_MISCONFIGURED") == "ERROR"
    assert level_of(StartOutcome.REFUSED, "IDENTITY_NOT_MAPPED") == "WARNING"


def test_records_of_libraries_are_lines_of_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    from user_endpoint.library_log import forward_library_log

    root, ours = logging.getLogger(), logging.getLogger("user_endpoint")
    before, level = list(root.handlers), ours.level
    try:
        forward_library_log()
        forward_library_log()
        logging.getLogger("user_endpoint.engines.htex.blocks").info("block submitted block=%s", "0")
        logging.getLogger("parsl.x").warning("odd\nnews")
        logging.getLogger("parsl.x").info("no news")
    finally:
        root.handlers[:] = before
        ours.setLevel(level)
    lines = capfd.readouterr().err.splitlines()
    stamp = r"[0-9T:.-]+Z"
    assert len(lines) == 2
    assert re.fullmatch(rf"{stamp} INFO mep-uep\[\d+\]: block submitted block=0", lines[0])
    assert re.fullmatch(rf"{stamp} WARNING mep-uep\[\d+\]: odd\\nnews source=parsl.x", lines[1])
