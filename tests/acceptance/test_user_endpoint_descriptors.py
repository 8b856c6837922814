"""A user endpoint without free descriptors loses no task: it pauses, and goes on once there are some again."""

from __future__ import annotations

import os
import pathlib

from mep_link.client import TOO_FEW_DESCRIPTORS
from mep_sdk.serialize import serialize_arguments, serialize_function
from mep_wire import messages
from tests.support.fake_relay import FakeRelay
from tests.support.uep_process import UepProcess
from tests.support.waiting import until

THREADS = "engine:\n  type: ThreadPoolEngine\n  max_workers: 4\n"


def hog(go: str, most: int) -> int:
    """Open files, and every file that can be opened later, until `go` is there; close them, return their number."""
    import os
    import time

    held: list[int] = []
    deadline = time.monotonic() + 60
    while not os.path.exists(go) and time.monotonic() < deadline:
        try:
            while len(held) < most:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        time.sleep(0.001)
    for descriptor in held:
        os.close(descriptor)
    return len(held)


def one() -> int:
    return 1


FUNCTIONS = {"hog": serialize_function(hog), "one": serialize_function(one)}


def task(row: int, name: str, *arguments: object) -> messages.TaskItem:
    return messages.TaskItem(row, f"task-{row}", name, serialize_arguments(arguments, {}))


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def limits(pid: int) -> tuple[int, int]:
    """Return the soft and the hard limit of open files of a process."""
    (line,) = [line for line in pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines() if "open files" in line]
    soft, hard = line.split()[3:5]
    return int(soft), int(hard)


def test_tasks_that_take_every_descriptor_break_neither_link_nor_process(home: pathlib.Path) -> None:
    """The link is cut meanwhile; it comes back and every task ends once there are descriptors again."""
    relay = FakeRelay()
    with UepProcess(relay, home, template=THREADS, open_files=(256, 256)) as uep:
        relay.welcome()
        relay.expect(messages.Credit)
        go = home / "go"
        relay.submit(FUNCTIONS, [task(row, "hog", str(go), 10_000) for row in (1, 2)])
        until("the pause in the log", lambda: "not requesting tasks" in uep.log())
        relay.close()
        until("the lack in the log", lambda: TOO_FEW_DESCRIPTORS in uep.log())
        relay = relay.restarted()
        assert "requesting tasks again" not in uep.log()
        go.touch()
        relay.welcome()
        assert {item.code for item in relay.results(2).values()} == {""}
        relay.expect(messages.Credit)
        assert "requesting tasks again" in uep.log()
        relay.submit(FUNCTIONS, [task(row, "one") for row in range(3, 13)])
        assert {item.code for item in relay.results(10).values()} == {""}
        assert uep.status is None
    relay.close()


def test_no_task_is_requested_while_few_descriptors_are_free(home: pathlib.Path) -> None:
    relay = FakeRelay()
    with UepProcess(relay, home, template=THREADS, open_files=(256, 256)) as uep:
        relay.welcome()
        relay.expect(messages.Credit)
        go = home / "go"
        relay.submit(FUNCTIONS, [task(1, "hog", str(go), 215)])
        until("the pause in the log", lambda: "not requesting tasks" in uep.log())
        relay.credit, relay.backlog = 0, []
        relay.submit(FUNCTIONS, [task(row, "one") for row in range(2, 12)])
        assert {item.code for item in relay.results(10).values()} == {""}
        assert relay.credit == -10, "the ten tasks were not replaced"
        go.touch()
        assert relay.results(1)[1].code == ""
        relay.expect(messages.Credit)
    relay.close()


def test_the_limit_is_raised_to_what_the_workers_need(home: pathlib.Path) -> None:
    relay = FakeRelay()
    template = "engine:\n  type: ProcessPoolEngine\n  max_workers: 40\n"
    with UepProcess(relay, home, template=template, open_files=(64, 4096)) as uep:
        relay.welcome()
        relay.expect(messages.Credit)
        soft, hard = limits(uep.pid)
        assert 3 * 40 < soft < 400, "no further than needed: it passes to the schedulers' commands"
        assert hard == 4096
        relay.submit(FUNCTIONS, [task(row, "one") for row in range(1, 41)])
        assert {item.code for item in relay.results(40).values()} == {""}
        assert "Too many open files" not in uep.log()
    relay.close()


def test_a_hard_limit_that_is_too_low_is_said_at_the_start(home: pathlib.Path) -> None:
    relay = FakeRelay()
    template = "engine:\n  type: ProcessPoolEngine\n  max_workers: 100\n"
    with UepProcess(relay, home, template=template, open_files=(128, 128)) as uep:
        report = uep.next_report()
        assert report[:2] == ["FAILED", "ENDPOINT_MISCONFIGURED"]
        assert "may need 396 open files, and the hard limit is 128" in report[3]
    relay.close()
