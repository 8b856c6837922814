"""A user endpoint with GlobusComputeEngine, started as its keeper does: its workers' account, and no leftovers."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from mep_sdk.serialize import load_result, serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess, account
from tests.support.waiting import until

TEMPLATE = """
engine:
  type: GlobusComputeEngine
  max_workers_per_node: {{ WORKERS | default(2) }}
  provider:
    type: LocalProvider
    init_blocks: {{ BLOCKS | default(1) }}
    worker_init: {{ SETUP | default() }}
"""


def who() -> dict[str, object]:
    import os

    return {
        "uids": os.getresuid(),
        "gids": (os.getresgid(), os.getgroups()),
        "home": os.environ.get("HOME"),
        "mark": os.environ.get("MARK"),
        "privileges": [line for line in open("/proc/self/status") if line.startswith("CapEff")],
        "umask": os.umask(0o077),
    }


def nap(seconds: float) -> None:

    time.sleep(seconds)


FUNCTIONS = {f.__name__: serialize_function(f) for f in (who, nap)}


def task(row: int, function: Callable[..., object], *args: object) -> messages.TaskItem:
    return messages.TaskItem(row, f"task-{row}", function.__name__, serialize_arguments(args, {}))


@pytest.fixture
def relay() -> Iterator[FakeRelay]:
    made = FakeRelay()
    yield made
    made.close()


def up(relay: FakeRelay, uep: UepProcess) -> None:
    relay.welcome()
    assert uep.next_report() == ["READY"], uep.log()
    relay.expect(messages.Credit)


def living(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(pid)
    return found


def test_workers_are_the_persons_own(relay: FakeRelay, home: pathlib.Path) -> None:
    config = {"WORKERS": 1, "SETUP": "export MARK='a: b'\numask 077"}
    with UepProcess(relay, home, template=TEMPLATE, config=config) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, who)])
        item = relay.results(1)[1]
        assert not item.code, item
        seen = load_result(item.payload)
        entry = account()
        assert seen["uids"] == (entry.pw_uid,) * 3
        assert seen["gids"][0] == (entry.pw_gid,) * 3
        assert seen["home"] == str(home)
        assert seen["mark"] == "a: b"
        assert seen["umask"] == 0o077
        if os.getuid() == 0:
            assert seen["privileges"] == ["CapEff:\t0000000000000000\n"]
        own = [path for path in uep.state.rglob("*") if not path.is_symlink()]  # links are to the endpoint's packages
        private = [path for path in own if path.stat().st_mode & 0o077]
        assert private == []
        uep.signal(signal.SIGTERM)  # with it go its pools, which outlive a killed one by 15 s
        assert uep.wait() == 0


def test_nothing_is_left_after_its_end(relay: FakeRelay, home: pathlib.Path) -> None:
    with UepProcess(relay, home, template=TEMPLATE) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, who)])
        relay.results(1)
        mark = str(uep.state).encode()
        ours = [
            int(entry.name) for entry in pathlib.Path("/proc").iterdir() if entry.name.isdigit() and mark in line(entry)
        ]
        assert len(ours) >= 2  # pool and interchange; the pool's workers are forked from it
        uep.signal(signal.SIGTERM)
        assert uep.wait() == 0
        until("the end of pool and interchange", lambda: not living(ours), details=lambda: living(ours))


def line(entry: pathlib.Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
    except OSError:
        return b""


def test_a_task_ends_with_the_user_endpoints_words_where_no_block_comes_up(
    relay: FakeRelay, home: pathlib.Path
) -> None:
    with UepProcess(relay, home, template=TEMPLATE, config={"SETUP": "echo no such module >&2; exit 4"}) as uep:
        up(relay, uep)
        relay.submit(FUNCTIONS, [task(1, who)])
        item = relay.results(1)[1]
        assert item.code == "ENGINE_FAILED"
        assert "no such module" in item.text


@pytest.mark.parametrize(
    ("template", "code", "detail"),
    [
        (TEMPLATE.replace("LocalProvider", "LocalProvidr"), "ENDPOINT_MISCONFIGURED", "did you mean LocalProvider?"),
        (TEMPLATE + "  encrypted: false\n", "ENDPOINT_MISCONFIGURED", "engine.encrypted: must not be false"),
        (TEMPLATE + "  max_workers: 1\n", "ENDPOINT_MISCONFIGURED", "did you mean max_workers_per_node?"),
        (TEMPLATE.replace("| default(2)", ""), "USER_CONFIG_INVALID", "line 4"),
    ],
)
def test_what_is_wrong_is_said_before_it_joins(
    relay: FakeRelay, home: pathlib.Path, template: str, code: str, detail: str
) -> None:
    with UepProcess(relay, home, template=template) as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", code]
        assert detail in " ".join(report[3:])
