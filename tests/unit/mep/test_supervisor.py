"""The keeper's table of a user endpoint's life: each row, each pair without one, and the report of each end."""

from __future__ import annotations

import signal

import pytest

from mep.boundary.errors import Refusal, StartStage
from mep.root.keeper.supervisor import TABLE, Event, Life, Phase, ProcessEnding, UepReport

STOP = ProcessEnding("STOPPED", "Stopped.", "by a test")
FAILED = UepReport("FAILED", "ENGINE_FAILED", "No engine.", "the reason")
ENDED = UepReport("ENDED", "IDLE", "It was idle.")
EXCESS = (Refusal.OUT_OF_MEMORY, "Too large.")
WAYS = {
    Phase.STARTING: [],
    Phase.FAILING: [(Event.LEAVE, FAILED)],
    Phase.CANCELLING: [(Event.STOP, STOP)],
    Phase.RUNNING: [(Event.READY, None)],
    Phase.LEAVING: [(Event.READY, None), (Event.LEAVE, ENDED)],
    Phase.STOPPING: [(Event.READY, None), (Event.STOP, STOP)],
}


def life_in(phase: Phase) -> Life:
    life = Life()
    assert all(life.take(event, why) for event, why in WAYS[phase])
    assert life.phase is phase
    return life


PAIRS = [(phase, event) for phase in Phase for event in Event]
ROWS = [
    (Phase.STARTING, Event.READY, Phase.RUNNING),
    (Phase.STARTING, Event.LEAVE, Phase.FAILING),
    (Phase.STARTING, Event.STOP, Phase.CANCELLING),
    (Phase.FAILING, Event.STOP, Phase.CANCELLING),
    (Phase.RUNNING, Event.LEAVE, Phase.LEAVING),
    (Phase.RUNNING, Event.STOP, Phase.STOPPING),
    (Phase.LEAVING, Event.STOP, Phase.STOPPING),
]


@pytest.mark.parametrize(("phase", "event", "then"), ROWS)
def test_each_row(phase: Phase, event: Event, then: Phase) -> None:
    life, why = life_in(phase), ProcessEnding("NEW")
    assert life.take(event, why)
    assert (life.phase, life.why) == (then, why)


@pytest.mark.parametrize(("phase", "event"), [pair for pair in PAIRS if pair not in TABLE])
def test_a_pair_without_a_row_changes_nothing(phase: Phase, event: Event) -> None:
    """A user endpoint reports what it likes, as often as it likes: the first report counts, and the first order."""
    life = life_in(phase)
    before = life.why
    assert not life.take(event, ProcessEnding("NEW"))
    assert (life.phase, life.why) == (phase, before)


def test_the_rows_are_the_table() -> None:
    assert {(phase, event): then for phase, event, then in ROWS} == TABLE


@pytest.mark.parametrize(
    ("phase", "status", "code", "stage"),
    [
        (Phase.STARTING, 256, "START_FAILED", StartStage.READY),
        (Phase.STARTING, signal.SIGKILL, "START_INTERRUPTED", StartStage.READY),
        (Phase.FAILING, 256, "ENGINE_FAILED", StartStage.READY),
        (Phase.CANCELLING, signal.SIGTERM, "STOPPED", StartStage.READY),
        (Phase.RUNNING, 0, "USER_ENDPOINT_LOST", None),
        (Phase.RUNNING, signal.SIGKILL, "USER_ENDPOINT_LOST", None),
        (Phase.LEAVING, 0, "IDLE", None),
        (Phase.STOPPING, signal.SIGTERM, "STOPPED", None),
    ],
)
def test_the_phase_decides_what_is_told(phase: Phase, status: int, code: str, stage: StartStage | None) -> None:
    ending = life_in(phase).ending(status, None)
    assert (ending.code, ending.stage, ending.status) == (code, stage, status)


@pytest.mark.parametrize("phase", Phase)
def test_an_excess_is_the_reason_unless_there_was_another(phase: Phase) -> None:
    ending = life_in(phase).ending(signal.SIGKILL, EXCESS)
    other = {Phase.CANCELLING: "STOPPED", Phase.STOPPING: "STOPPED", Phase.LEAVING: "IDLE"}
    assert ending.code == other.get(phase, Refusal.OUT_OF_MEMORY)


def test_a_failure_after_it_was_ready_is_explained_by_an_excess() -> None:
    life = life_in(Phase.RUNNING)
    life.take(Event.LEAVE, FAILED)
    assert life.ending(256, None).code == "ENGINE_FAILED"
    assert life.ending(256, EXCESS).code == Refusal.OUT_OF_MEMORY


def test_an_order_after_its_report_is_the_reason() -> None:
    life = life_in(Phase.LEAVING)
    life.take(Event.STOP, STOP)
    assert (life.ending(0, EXCESS).code, life.ending(0, EXCESS).detail) == ("STOPPED", "by a test; exit status 0")
