"""Callouts through the whole chain, as an account that is not root: programs that answer, lie, fail and dawdle."""

from __future__ import annotations

import concurrent.futures
import json
import logging
import os
import pathlib
import pwd
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from identity import loader
from identity.chain import Chain
from identity.concurrency_limits import MAX_AT_ONE, MAX_OF_ONE
from identity.errors import (
    AmbiguousMapping,
    MappingError,
    MappingFileInvalid,
    NameRefused,
    NoMapping,
    SourceBusy,
    SourceUnavailable,
)
from tests.support.cli import open_directory
from tests.support.dropped import as_nobody
from tests.support.waiting import until

ALICE = {
    "id": "5cde4d0e-0000-4000-8000-00000000000a", "username": "alice@example.edu", "status": "used",
    "email": "alice@example.edu", "identity_provider": "1f8ba017-6224-43ad-a42f-03059574ba38",
}  # fmt: skip
BOB = {"id": "5cde4d0e-0000-4000-8000-00000000000b", "username": "bob@example.edu", "status": "private"}
CLOSED = {"id": "5cde4d0e-0000-4000-8000-00000000000c", "username": "c@example.edu", "status": "closed"}
GENERAL = {"DATA_TYPE": "domain_identity_mapping#1.0.0", "domain": "example.edu"}
HEAD = f"""#!{sys.executable} -I
import json, os, sys, time
asked = json.load(sys.stdin)
ids = [identity["id"] for identity in asked["identities"]]
def answer(*pairs, **more):
    result = [{{"id": key, "output": name}} for key, name in pairs]
    print(json.dumps({{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": result, **more}}))
"""


@pytest.fixture
def directory() -> Iterator[pathlib.Path]:
    """A directory in which any account may read and write its own files."""
    with open_directory() as directory:
        directory.chmod(0o1777)
        yield directory


Loader = Callable[..., Chain]


@pytest.fixture
def load(directory: pathlib.Path) -> Loader:
    """A loader of a mapping file with one callout (its Python text after HEAD) and perhaps more documents."""
    counter = iter(range(1000))

    def make(
        text: str, *others: dict[str, Any], arguments: tuple[Any, ...] = (), head: str = HEAD, **keys: Any
    ) -> Chain:
        number = next(counter)
        program = directory / f"callout{number}"
        program.write_text(head + text)
        program.chmod(0o755)
        path = directory / f"mapping{number}.json"
        command = [str(program), *arguments]
        path.write_text(
            json.dumps([{"DATA_TYPE": "external_identity_mapping#1.0.0", "command": command, **keys}, *others])
        )
        return loader.load(path, gateway="5cde4d0e-0000-4000-8000-0000000000ee")

    return make


def map_as_nobody(chain: Chain, *identities: dict[str, str]) -> str:
    return as_nobody(lambda: chain.map(identities or [ALICE]).name)


def test_the_answer_is_the_user(load: Loader) -> None:
    assert map_as_nobody(load("answer((ids[0], 'alice'))")) == "alice"
    assert map_as_nobody(load("answer((ids[0].upper(), 'alice'))")) == "alice"


def test_a_gateways_end_user_is_in_the_input_where_the_document_asks(load: Loader) -> None:
    text = "answer((ids[0], asked.get('end_user', 'nobody-named').partition('@')[0]))"
    asks, does_not = load(text, end_user_accounts=["gw-*"]), load(text)
    named = "gw-ada@example.edu"
    assert as_nobody(lambda: asks.map([ALICE], end_user=named).name) == "gw-ada"
    assert as_nobody(lambda: does_not.map([ALICE], end_user=named).name) == "nobody-named"
    with pytest.raises(NameRefused):
        as_nobody(lambda: asks.map([ALICE], end_user="alice@example.edu").name)


def test_input_arguments_account_and_environment(load: Loader, directory: pathlib.Path) -> None:
    seen = directory / "seen"
    text = f"""
json.dump([asked, sys.argv[1:], os.getresuid(), os.getresgid(), os.getgroups(), dict(os.environ), os.getcwd(),
    os.getpgid(0) == os.getpid(), sorted(os.listdir("/proc/self/fd"))[:3]], open({str(seen)!r}, "w"))
answer((ids[1], "bob"))
"""
    chain = load(text, arguments=("--table", 7))
    assert map_as_nobody(chain, ALICE, BOB, CLOSED) == "bob"
    asked, arguments, uids, gids, groups, environment, directory, own_group, _ = json.loads(seen.read_text())
    assert asked == {"DATA_TYPE": "identity_mapping_input#1.0.0", "identities": [ALICE, BOB]}
    connector = "145812c8-decc-41f1-83cf-bb2a85a2a70b"
    assert arguments == ["--table", "7", "-c", connector, "-s", "5cde4d0e-0000-4000-8000-0000000000ee", "-a"]
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    assert set(uids) == {nobody.pw_uid}
    assert set(gids) == {nobody.pw_gid}
    assert groups == [] or os.geteuid() != 0
    assert set(environment) <= {"PATH", "LANG", "LC_CTYPE"}
    assert directory == "/"
    assert own_group


@pytest.mark.root
def test_never_as_root(load: Loader, directory: pathlib.Path) -> None:
    chain = load(f"open({str(directory / 'ran')!r}, 'w'); answer((ids[0], 'alice'))")
    with pytest.raises(SourceUnavailable, match="must not run as root"):
        chain.map([ALICE])
    assert not (directory / "ran").exists()


@pytest.mark.parametrize("text", ["answer()", "answer(more=1)", "print(); answer()"])
def test_an_empty_result_is_nobody_and_goes_on_to_the_next_mapper(load: Loader, text: str) -> None:
    assert map_as_nobody(load(text, GENERAL)) == "alice"
    with pytest.raises(NoMapping):
        map_as_nobody(load(text))


FAILURES = {
    "status": ("answer((ids[0], 'alice')); sys.exit(1)", "status 1"),
    "signal": ("answer((ids[0], 'alice')); sys.stdout.flush(); os.abort()", "SIGABRT"),
    "slow": ("time.sleep(60)", "did not end within 0.5 s"),
    "huge": ("sys.stdout.write('x' * 50_000_000)", "wrote more than"),
    "endless": ("while True: print('x' * 1000)", "wrote more than"),
    "garbage": ("print('alice')", "not JSON"),
    "binary": ("os.write(1, bytes(range(256)))", "not JSON"),
    "deep": ("print('[' * 100_000)", "not JSON"),
    "nothing": ("pass", "wrote nothing"),
    "an empty line": ("print()", "wrote nothing"),
    "an empty object": ("print('{}')", "DATA_TYPE is 'None'"),
    "no type": ("print(json.dumps({'result': []}))", "DATA_TYPE is 'None'"),
    "null type": ("answer(DATA_TYPE=None)", "DATA_TYPE is 'None'"),
    "the input's type": ("answer(DATA_TYPE='identity_mapping_input#1.0.0')", "not identity_mapping_output"),
    "no result": ("print(json.dumps({'DATA_TYPE': 'identity_mapping_output#1.0.0'}))", "has no result"),
    "null result": ("answer(result=None)", "not a list"),
    "twice": ("answer(); answer()", "not JSON"),
    "a key twice": (
        """print('{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": [{"id": "x"}], "result": []}')""",
        "a key twice",
    ),
    "null": ("print('null')", "not identity_mapping_output"),
    "list": ("print('[]')", "not identity_mapping_output"),
    "type": ("answer((ids[0], 'alice'), DATA_TYPE='identity_mapping_output#2.0.0')", "not identity_mapping_output"),
    "result": ("answer(result={})", "not a list"),
    "entry": ("answer(result=[7])", "not an id and an output"),
    "no output": ("answer(result=[{'id': ids[0]}])", "not an id and an output"),
    "number": ("answer((ids[0], 7))", "not an id and an output"),
    "none": ("answer((ids[0], None))", "not an id and an output"),
    "foreign id": ("answer((ids[0], 'alice'), ('00000000-0000-4000-8000-000000000000', 'root'))", "not asked about"),
    "half": ('print(\'{"DATA_TYPE": "identity_mapping_output#1.0.0", "result": [\')', "not JSON"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_broken_callout_is_a_failure_and_never_a_match(load: Loader, what: str) -> None:
    text, reason = FAILURES[what]
    with pytest.raises(SourceUnavailable, match=reason):
        map_as_nobody(load(text, GENERAL, timeout_s=0.5 if what == "slow" else 10))
    if what != "slow":
        assert map_as_nobody(load(text, GENERAL, on_error="next", timeout_s=10)) == "alice"


@pytest.mark.parametrize("spelling", ["ids[0].upper()", "ids[0].replace('-', '')", "'{' + ids[0] + '}'"])
def test_an_id_may_be_spelt_as_any_uuid_may(load: Loader, spelling: str) -> None:
    assert map_as_nobody(load(f"answer(({spelling}, 'alice'))")) == "alice"


def test_a_program_that_others_may_write_is_not_run(load: Loader, directory: pathlib.Path) -> None:
    chain = load(f"open({str(directory / 'ran')!r}, 'w'); answer((ids[0], 'alice'))")
    (directory / "callout0").chmod(0o777)
    with pytest.raises(SourceUnavailable, match="bad permissions: chmod go-w"):
        map_as_nobody(chain)
    assert not (directory / "ran").exists()
    with pytest.raises(MappingFileInvalid, match=r"document 0: command: .*bad permissions: chmod go-w"):
        loader.load(directory / "mapping0.json")


def test_a_program_of_somebody_else_is_refused_at_load(load: Loader, directory: pathlib.Path) -> None:
    load("pass")
    os.chown(directory / "callout0", pwd.getpwnam("nobody").pw_uid, 0)
    with pytest.raises(MappingFileInvalid, match="chown root"):
        loader.load(directory / "mapping0.json")


def test_one_that_vanishes_after_the_load_is_a_failure(load: Loader, directory: pathlib.Path) -> None:
    chain = load("answer((ids[0], 'alice'))")
    (directory / "callout0").unlink()
    with pytest.raises(SourceUnavailable, match=r"callout0: No such file"):
        map_as_nobody(chain)


@pytest.mark.parametrize("name", ["", "-rf", "../root", "a b", "alice\n", "root:x", "é", "x" * 33, "0", "."])
def test_what_is_no_user_name_is_refused(load: Loader, name: str) -> None:
    with pytest.raises(NameRefused):
        map_as_nobody(load(f"answer((ids[0], {name!r}))", GENERAL))


def test_several_users_are_ambiguous(load: Loader) -> None:
    for text in ("answer((ids[0], 'a'), (ids[1], 'b'))", "answer((ids[0], 'a'), (ids[0], 'b'))"):
        with pytest.raises(AmbiguousMapping):
            map_as_nobody(load(text), ALICE, BOB)
    text = "answer((ids[1], 'b'), (ids[0], 'a'))"
    assert map_as_nobody(load(text, ambiguous="first"), ALICE, BOB) == "a"
    assert map_as_nobody(load("answer((ids[1], 'same'), (ids[0], 'same'))"), ALICE, BOB) == "same"


def test_what_it_says_goes_to_the_log(load: Loader, caplog: pytest.LogCaptureFixture) -> None:
    chain = load("print('table\\x1b[2J is old\\n' * 2, file=sys.stderr); answer((ids[0], 'alice'))")

    def logged() -> list[str]:
        with caplog.at_level(logging.WARNING):
            chain.map([ALICE])
        return [record.getMessage() for record in caplog.records]

    lines = as_nobody(logged)
    assert len([line for line in lines if "table\\x1b[2J is old" in line]) == 2


def test_a_child_that_outlives_it_delays_nothing_and_is_killed(load: Loader, directory: pathlib.Path) -> None:
    late = directory / "late"
    text = f"""
answer((ids[0], 'alice')); sys.stdout.flush()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(2); open({str(late)!r}, 'w')
"""
    began = time.monotonic()
    assert map_as_nobody(load(text, timeout_s=30)) == "alice"
    assert time.monotonic() - began < 25, "it was not waited for"
    time.sleep(2.5)
    assert not late.exists()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_one_that_gets_at_whoever_watches_over_it_does_not_outlive_it(
    load: Loader, directory: pathlib.Path, number: signal.Signals
) -> None:
    mark = directory / "pid"
    text = f"open({str(mark)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), {number.value}); time.sleep(60)"
    with pytest.raises(SourceUnavailable):
        map_as_nobody(load(text, timeout_s=2))
    status = pathlib.Path(f"/proc/{mark.read_text()}/stat")
    until("the child's end", lambda: not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z")


SLOW = """
open(os.path.join(sys.argv[1], str(os.getpid())), 'w').close()
while not os.path.exists(sys.argv[1] + ".go"):
    time.sleep(0.02)
answer((ids[0], 'slow'))
"""


def test_a_slow_callout_delays_nobody_else_and_its_number_is_limited(load: Loader, directory: pathlib.Path) -> None:
    running = directory / "running"
    running.mkdir(mode=0o777)
    running.chmod(0o777)
    chain = load(SLOW, arguments=(str(running),), timeout_s=60, max_concurrent=2)
    quick = load("answer((ids[0], 'quick'))")

    def scenario() -> tuple[int, list[str]]:
        with concurrent.futures.ThreadPoolExecutor(5) as pool:
            slow_ones = [pool.submit(chain.map, [ALICE]) for _ in range(4)]
            until("two running callouts", lambda: len(list(running.iterdir())) >= 2)
            assert pool.submit(quick.map, [ALICE]).result().name == "quick"
            time.sleep(0.3)
            at_once = len(list(running.iterdir()))
            assert not any(one.done() for one in slow_ones)
            pathlib.Path(f"{running}.go").touch()
            return at_once, [future.result().name for future in slow_ones]

    at_once, names = as_nobody(scenario)
    assert at_once == 2
    assert names == ["slow"] * 4


def test_who_would_wait_behind_too_many_is_told_at_once_and_never_mapped_by_a_later_rule(
    load: Loader, directory: pathlib.Path
) -> None:
    running = directory / "running"
    running.mkdir(mode=0o777)
    running.chmod(0o777)
    chain = load(SLOW, GENERAL, arguments=(str(running),), timeout_s=60, max_concurrent=2, on_error="next")

    def scenario() -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(chain.map, [{**ALICE, "id": str(uuid.uuid4())}]) for _ in range(MAX_AT_ONE)]
            until("two running callouts", lambda: len(list(running.iterdir())) >= 2)
            time.sleep(0.5)  # until the others wait
            with pytest.raises(SourceBusy, match=f"{MAX_AT_ONE - 2} people wait"):
                chain.map([ALICE])
            recheck = pool.submit(chain.map, [ALICE], certain=True)
            pathlib.Path(f"{running}.go").touch()
            return [future.result().name for future in (*asked, recheck)]

    assert as_nobody(scenario) == ["slow"] * (MAX_AT_ONE + 1)


def test_one_person_with_many_starts_leaves_places_to_others(load: Loader, directory: pathlib.Path) -> None:
    running = directory / "running"
    running.mkdir(mode=0o777)
    running.chmod(0o777)
    chain = load(SLOW, GENERAL, arguments=(str(running),), timeout_s=60, max_concurrent=8, on_error="next")

    def scenario() -> list[str]:
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            asked = [pool.submit(chain.map, [ALICE]) for _ in range(MAX_OF_ONE)]
            until("this person's callouts", lambda: len(list(running.iterdir())) >= MAX_OF_ONE)
            with pytest.raises(SourceBusy, match="this person is being looked up"):
                chain.map([ALICE])
            other = pool.submit(chain.map, [BOB])
            until("the other person's callout", lambda: len(list(running.iterdir())) > MAX_OF_ONE)
            pathlib.Path(f"{running}.go").touch()
            return [future.result().name for future in (*asked, other)]

    assert as_nobody(scenario) == ["slow"] * (MAX_OF_ONE + 1)


def test_no_place_within_the_time_is_a_failure(load: Loader) -> None:
    chain = load("time.sleep(60)", timeout_s=1, max_concurrent=1)

    def scenario() -> list[str]:
        outcomes: list[str] = []
        lock = threading.Lock()

        def one() -> None:
            try:
                outcome = chain.map([ALICE]).name
            except MappingError as error:
                outcome = str(error)
            with lock:
                outcomes.append(outcome)

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    outcomes = as_nobody(scenario)
    assert any("did not end within" in outcome for outcome in outcomes)
    assert any("no permit" in outcome for outcome in outcomes)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"command": []}, "command: not a list"),
        ({"command": "/bin/true"}, "command: not a list"),
        ({"command": [["/bin/true"]]}, "texts and numbers"),
        ({"command": [True]}, "texts and numbers"),
        ({"command": ["bin/true"]}, "relative path"),
        ({"command": ["/nonexistent/mapper"]}, "no program"),
        ({"command": ["/etc/passwd"]}, "no program"),
        ({"command": ["/bin/true", "a\0b"]}, "NUL"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"shell": True}, "shell: unknown key"),
    ],
)
def test_a_bad_document_is_refused_at_load(directory: pathlib.Path, keys: dict[str, Any], reason: str) -> None:
    path = directory / "bad.json"
    document = {"DATA_TYPE": "external_identity_mapping#1.0.0", "command": ["/bin/true"], **keys}
    path.write_text(json.dumps([GENERAL, document]))
    with pytest.raises(MappingFileInvalid, match=reason) as caught:
        loader.load(path)
    assert caught.value.index == 1
