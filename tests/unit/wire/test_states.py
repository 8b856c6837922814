"""The transition tables, and that nothing leaves a terminal state."""

from __future__ import annotations

import pytest

from mep_wire.states import (
    API_STATUS,
    TASK_TRANSITIONS,
    UEP_TRANSITIONS,
    IllegalTransition,
    TaskState,
    UepState,
    next_task_state,
    next_uep_state,
)


def test_every_state_has_a_row() -> None:
    assert set(TASK_TRANSITIONS) == set(TaskState)
    assert set(UEP_TRANSITIONS) == set(UepState)
    assert set(API_STATUS) == set(TaskState)


@pytest.mark.parametrize("end", [s for s in TaskState if s.is_terminal])
def test_a_terminal_task_stays_where_it_is(end: TaskState) -> None:
    for then in TaskState:
        with pytest.raises(IllegalTransition, match=end.name):
            next_task_state(end, then)


@pytest.mark.parametrize("state", [s for s in TaskState if not s.is_terminal])
def test_every_unfinished_task_can_reach_every_end(state: TaskState) -> None:
    for end in (s for s in TaskState if s.is_terminal):
        assert next_task_state(state, end) is end


def test_a_draining_user_endpoint_can_only_end() -> None:
    assert next_uep_state(UepState.DRAINING, UepState.ABSENT) is UepState.ABSENT
    with pytest.raises(IllegalTransition):
        next_uep_state(UepState.DRAINING, UepState.ONLINE)


def test_every_user_endpoint_state_can_reach_absent() -> None:
    for state in UepState:
        assert state is UepState.ABSENT or UepState.ABSENT in UEP_TRANSITIONS[state]
