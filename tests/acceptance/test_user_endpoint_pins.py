"""`allowed_functions` against a relay that lies: the user endpoint checks the bytes of the code that it received."""

from __future__ import annotations

import hashlib
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from mep_sdk.serialize import load_result, serialize_arguments
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import TEMPLATE, UepProcess

from .test_user_endpoint import FUNCTIONS, up

LISTED, OTHER = "6d0ba55f-de15-4af2-827d-05c50c338aa7", "0e5a7f0c-5a0b-4c5e-9a39-6f1f0a6f2a11"
ECHO, NAP = (hashlib.sha256(FUNCTIONS[name]).digest() for name in ("echo", "nap"))
PINNED: dict[str, Any] = {"allowed_functions": [LISTED], "function_pins": {LISTED: ECHO}}
ENGINES = {
    "process": TEMPLATE,
    "thread": "engine:\n  type: ThreadPoolEngine\n",
    "HTEX": "engine:\n  type: GlobusComputeEngine\n",
}
every_engine = pytest.mark.parametrize("template", ENGINES.values(), ids=list(ENGINES))


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    made = FakeRelay()
    yield made
    if not made.router.closed:
        made.close()


def call(row: int, function_id: str, *args: Any) -> messages.TaskItem:
    """Return a task that calls whatever the relay serves under this id."""
    return messages.TaskItem(row, f"task-{row}", function_id, serialize_arguments(args, {}))


def outcome(relay: FakeRelay, name: str, function_id: str, *, row: int = 1) -> messages.ResultItem:
    """Serve the code of `name` under an id, call it with 0.0, and return the result."""
    relay.send(
        messages.Tasks(
            functions=[messages.FunctionItem(function_id, FUNCTIONS[name])], tasks=[call(row, function_id, 0.0)]
        )
    )
    while row not in (found := relay.results(1)):  # a relay that came back is sent earlier results once more
        pass
    return found[row]


def end(uep: UepProcess) -> None:
    """End it in good order, and its blocks with it."""
    uep.signal(signal.SIGTERM)
    assert uep.wait() == 0


@every_engine
def test_a_pinned_id_runs_the_pinned_code_alone(relay: FakeRelay, home: pathlib.Path, template: str) -> None:
    with UepProcess(relay, home, template=template, **PINNED) as uep:
        up(relay, uep)
        assert load_result(outcome(relay, "echo", LISTED).payload) == 0.0
        refused = outcome(relay, "nap", LISTED, row=2)  # also once a worker holds the right code under this id
        assert outcome(relay, "echo", OTHER, row=3).code == "FUNCTION_NOT_ALLOWED"
        assert load_result(outcome(relay, "echo", LISTED, row=4).payload) == 0.0
        assert uep.next_report()[:2] == ["NOTICE", "FUNCTION_CODE_CHANGED"]
        log = uep.log()
        end(uep)
    assert refused.code == "FUNCTION_CODE_CHANGED"
    assert NAP.hex() in refused.text
    assert f"function refused: not the pinned code function={LISTED} received={NAP.hex()}" in log


@every_engine
def test_a_digest_allows_its_code_under_any_id(relay: FakeRelay, home: pathlib.Path, template: str) -> None:
    with UepProcess(relay, home, template=template, allowed_functions=[f"sha256:{ECHO.hex().upper()}"]) as uep:
        up(relay, uep)
        assert load_result(outcome(relay, "echo", OTHER).payload) == 0.0
        assert outcome(relay, "nap", OTHER, row=2).code == "FUNCTION_NOT_ALLOWED"
        assert outcome(relay, "nap", LISTED, row=3).code == "FUNCTION_NOT_ALLOWED"
        assert outcome(relay, "echo", LISTED, row=4).code == ""
        end(uep)


def test_one_message_with_the_right_code_and_then_other_code(relay: FakeRelay, home: pathlib.Path) -> None:
    both = [messages.FunctionItem(LISTED, FUNCTIONS[name]) for name in ("echo", "nap")]
    with UepProcess(relay, home, **PINNED) as uep:
        up(relay, uep)
        relay.send(messages.Tasks(functions=both, tasks=[call(1, LISTED, 0.0)]))
        assert relay.results(1)[1].code == "FUNCTION_CODE_CHANGED"


def test_a_relay_that_comes_back_with_other_code(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, **PINNED) as uep:
        up(relay, uep)
        assert outcome(relay, "echo", LISTED).code == ""
        relay.close()
        back = relay.restarted()
        back.welcome()
        assert outcome(back, "nap", LISTED, row=2).code == "FUNCTION_CODE_CHANGED"
        back.close()


def test_the_digest_and_the_id_of_one_function(relay: FakeRelay, home: pathlib.Path) -> None:
    """New code for an id is allowed once its digest is listed beside it."""
    entries = [LISTED, f"sha256:{NAP.hex()}"]
    with UepProcess(relay, home, allowed_functions=entries, function_pins={LISTED: ECHO}) as uep:
        up(relay, uep)
        assert [outcome(relay, name, LISTED, row=row).code for row, name in ((1, "echo"), (2, "nap"))] == ["", ""]
        assert outcome(relay, "surroundings", LISTED, row=3).code == "FUNCTION_CODE_CHANGED"


# --- the template's list, which may differ from person to person ------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "may"),
    [
        ([f"sha256:{ECHO.hex()}"], {"echo"}),
        ([LISTED.upper()], {"echo"}),
        ([f"sha256:{NAP.hex()}"], {"nap"}),
        ([f"sha256:{'0' * 64}"], set[str]()),
        ([], set[str]()),
    ],
)
def test_a_persons_list_narrows_the_endpoints(
    relay: FakeRelay, home: pathlib.Path, mine: list[str], may: set[str]
) -> None:
    template = TEMPLATE + "allowed_functions: {{ MINE }}\n"
    listed: dict[str, Any] = {"allowed_functions": [LISTED, f"sha256:{NAP.hex()}"], "function_pins": {LISTED: ECHO}}
    with UepProcess(relay, home, template=template, config={"MINE": mine}, **listed) as uep:
        up(relay, uep)
        served = {"echo": LISTED, "nap": OTHER, "surroundings": OTHER}
        ran = {name for row, name in enumerate(served, 1) if not outcome(relay, name, served[name], row=row).code}
    assert ran == may


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (OTHER, f"no code is pinned for {OTHER}"),
        ("echo", "'echo' is not a UUID"),
        ("sha256:12", "must be followed by 64 hexadecimal digits"),
        (ECHO.hex(), f"write sha256:{ECHO.hex()}"),
    ],
)
def test_an_entry_that_binds_nothing_is_refused_before_it_joins(
    relay: FakeRelay, home: pathlib.Path, entry: str, says: str
) -> None:
    with UepProcess(relay, home, template=f"{TEMPLATE}allowed_functions: ['{entry}']\n") as uep:
        report = uep.next_report()
    assert report[:2] == ["FAILED", "ENDPOINT_MISCONFIGURED"]
    assert "allowed_functions: " in report[3]
    assert says in report[3]


# --- code that arguments carry ----------------------------------------------------------------------------------


class Carried:
    """An argument that runs code when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("json_only", [False, True])
def test_a_list_binds_arguments_only_where_they_are_json(relay: FakeRelay, home: pathlib.Path, json_only: bool) -> None:
    made = home / "made"
    only = "  allowed_serializers: [PureSourceTextInspect, JSONData]\n" if json_only else ""
    with UepProcess(relay, home, template=TEMPLATE + only, **PINNED) as uep:
        up(relay, uep)
        relay.submit({LISTED: FUNCTIONS["echo"]}, [call(1, LISTED, Carried(made))])
        result = relay.results(1)[1]
    assert made.exists() is not json_only
    assert (result.code == "SERIALIZER_NOT_ALLOWED") is json_only
