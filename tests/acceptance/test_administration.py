"""An administrator's day by command line alone: from `mep configure` to a second person's result, then see and act.

A real relay, real accounts and real tasks. The tests of a module share one endpoint and undo their changes.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pathlib
import pwd
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from mep.boundary import messages as m
from mep.boundary.channel import Channel
from mep_sdk import Client, Executor
from mep_wire.errors import AccountBanned, EndpointDraining, MepError
from tests.support.accounts import LocalAccount, account
from tests.support.campus import SCHEMA_VALUE, TEMPLATE_TEXT
from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.terminal import on_terminal
from tests.support.waiting import until

pytestmark = pytest.mark.root
RESULT_S = 90


@dataclass
class Day:
    """The administrator's site: `mep` as root, and the people."""

    mep: Cli
    relay: RelayProcess
    endpoint: str
    people: dict[str, LocalAccount]
    tokens: dict[str, str]
    operator: LocalAccount
    """A member of admin_group."""

    @contextlib.contextmanager
    def executor(self, who: str, **config: Any) -> Iterator[Executor]:
        client = Client(relay_url=self.relay.url, token=self.tokens[who])
        executor = Executor(endpoint_id=self.endpoint, client=client, user_endpoint_config=config)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def result(self, who: str, **config: Any) -> int:
        with self.executor(who, **config) as executor:
            return int(executor.submit(os.getpid).result(timeout=RESULT_S))

    def run(self, *words: str, by: str = "", expect: int = 0) -> str:
        """Run `mep` as `by` (root if empty), with this person's groups; return what it printed."""
        who: dict[str, Any] = {}
        if by:
            found = pwd.getpwnam(by)
            groups = [one.gr_gid for one in grp.getgrall() if by in one.gr_mem]
            who = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": groups}
        done = subprocess.run(
            [sys.executable, "-I", "-m", "mep.cli", *words], env=self.mep.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120, cwd="/", check=False, **who,
        )  # fmt: skip
        assert done.returncode == expect, f"mep {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def status(self, by: str = "") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", "site", "--json", by=by))
        return found

    def of(self, who: str) -> list[dict[str, Any]]:
        """Return the rows of a person's user endpoints."""
        return [one for one in self.status()["user_endpoints"] if one["local_user"] == self.people[who].name]

    @contextlib.contextmanager
    def many_drains(self, count: int) -> Iterator[list[str]]:
        """Drain so many accounts, which need not exist, for the length of a `with` block; yield their names."""
        names = [f"meptest-{number}" for number in range(count)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(self.mep.path("run", "site", "admin", "socket")))
            channel = Channel(connection, blocking=True)

            def order(message: m.Message) -> None:
                channel.send(message)
                received = channel.receive()
                assert received is not None
                assert isinstance(received[0], m.AdminDone) and not received[0].problem, received

            for name in names:
                order(m.AdminDrain(0, name, ""))
            yield names
            for name in names:
                order(m.AdminUndrain(name))

    def audit(self, action: str) -> list[dict[str, Any]]:
        lines = self.mep.path("var", "site", "audit.log").read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["event"] == "admin" and one["action"] == action]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """From `mep configure` to a running endpoint with a mapping and a group of administrators."""
    group = f"meptest-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        relay = stack.enter_context(RelayProcess(tmp_path_factory.mktemp("relay")))
        people = {who: stack.enter_context(account()) for who in ("alice", "bob")}
        operator = stack.enter_context(account())
        subprocess.run(["groupadd", group], check=True, timeout=30)
        stack.callback(lambda: subprocess.run(["groupdel", group], check=False, timeout=30))
        subprocess.run(["usermod", "-aG", group, operator.name], check=True, timeout=30)
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        tokens = {who: relay.add_user(f"{who}@example.edu") for who in people}
        endpoint = mep.json("configure", "site", "--multi-user", "--relay", relay.url)["endpoint_id"]
        mapping = mep.path("etc", "site", "identity_mapping.json")
        rules = [
            {"source": "{username}", "match": f"{who}@example\\.edu", "output": one.name} for who, one in people.items()
        ]
        document = {"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": rules}
        mapping.write_text(json.dumps([document]))
        template = TEMPLATE_TEXT.replace("WORKPLACE", "$HOME")
        mep.path("etc", "site", "user_config_template.yaml.j2").write_text(template)
        mep.path("etc", "site", "user_config_schema.json").write_text(json.dumps(SCHEMA_VALUE))
        mep("register", "site", "--again")
        with mep.path("etc", "site", "config.yaml").open("a") as config:
            config.write(f"\nadmin_group: {group}\n")
        mep("check", "site")
        mep("start", "site", "--detach")
        stack.callback(lambda: mep("stop", "site", "--kill"))
        made = Day(mep, relay, endpoint, people, tokens, operator)
        until("a link that is up", lambda: made.status()["link"] == "up")
        yield made


def refusal(day: Day, who: str) -> MepError:
    """Return the error that a person's task ends with."""
    with day.executor(who) as executor, pytest.raises(MepError) as caught:
        executor.submit(os.getpid).result(timeout=RESULT_S)
    return caught.value


def test_two_people_have_results_and_status_shows_both(day: Day) -> None:
    pids = {who: day.result(who) for who in ("alice", "bob")}
    assert len(set(pids.values())) == 2
    for who in pids:
        (row,) = until("the figures", lambda who=who: [one for one in day.of(who) if one["tasks"]])
        assert row["person"] == f"{who}@example.edu"
        assert row["uid"] == day.people[who].uid
        assert row["state"] == "running"
        assert time.time() - 600 < row["started_at"] <= row["since"] <= time.time()
        done = until("the counted task", lambda who=who: (t := day.of(who)[0]["tasks"])["done"] and t)
        assert (done["waiting"], done["running"], done["done"], done["failed"]) == (0, 0, 1, 0)
        assert row["cpu_s"] > 0
        assert row["memory_bytes"] > 1_000_000
        assert row["log_path"] == f"{day.people[who].home}/.mep/uep/{row['uep_id']}/endpoint.log"
    text = day.run("status", day.endpoint)  # a UUID is as good as a name
    assert "alice@example.edu" in text
    assert "bob@example.edu" in text
    assert day.people["alice"].name in day.run("top", "site", "--count", "1")
    rows = json.loads(day.run("top", day.endpoint, "--json", "--count", "1"))["user_endpoints"]
    assert {one["person"] for one in rows} == {"alice@example.edu", "bob@example.edu"}


def fail() -> None:
    raise ValueError("the task's own mistake")


def sleep_in(path: str, seconds: float) -> str:
    open(path, "w").close()
    time.sleep(seconds)
    return "done"


def test_values_and_the_last_failure_are_shown(day: Day) -> None:
    with day.executor("alice", workers=1) as executor:
        with pytest.raises(ValueError, match="own mistake"):
            executor.submit(fail).result(timeout=RESULT_S)
        row = until("it", lambda: [one for one in day.of("alice") if "own mistake" in one["last_failure"]])[0]
        assert json.loads(row["values"]) == {"workers": 1}
        assert row["tasks"]["failed"] == 1
        text = day.run("status", "site")
        assert '"workers":1' in text.replace(" ", "")
        assert "own mistake" in text
    day.run("stop", "site", "--uep", row["uep_id"])


def test_blocks_and_their_jobs_are_shown(day: Day) -> None:
    with day.executor("alice", engine="GlobusComputeEngine", workers=1) as executor:
        assert executor.submit(pow, 2, 3).result(timeout=RESULT_S) == 8
        row = until("the block", lambda: [one for one in day.of("alice") if one["blocks"] and one["tasks"]["done"]])[0]
    assert re.fullmatch(r"0 job \d+ (running|pending)", row["blocks"])
    day.run("stop", "site", "--uep", row["uep_id"])


def test_a_member_of_the_group_may_do_the_listed_actions_and_no_others(day: Day) -> None:
    day.result("alice")
    operator = day.operator.name
    assert {one["person"] for one in day.status(by=operator)["user_endpoints"]} >= {"alice@example.edu"}
    assert "alice@example.edu" in day.run("top", "site", "--count", "1", by=operator)
    assert "start answered" in day.run("logs", "site", day.people["alice"].name, by=operator)
    day.run("reload", "site", by=operator)
    with day.many_drains(70) as names:
        assert [one["local_user"] for one in day.status(by=operator)["restrictions"]] == names
    day.run("drain", "site", "--user", day.people["bob"].name, by=operator)
    day.run("undrain", "site", "--user", day.people["bob"].name, by=operator)
    said = day.run("stop", "site", "--user", day.people["alice"].name, by=operator)
    assert "User endpoints stopped: 1." in said
    for action in ("reload", "drain", "undrain", "stop"):
        assert day.audit(action)[-1]["by_uid"] == day.operator.uid
    for words in (("stop", "site"), ("stop", "site", "--keep-user-endpoints")):
        assert "belongs to root; run this as that account\n" in day.run(*words, by=operator, expect=7)
    assert day.status()["pid"]


def test_an_ordinary_account_reads_not_permitted_and_nothing_else(day: Day) -> None:
    bob = day.people["bob"].name
    for words in (
        ("status", "site"), ("status", day.endpoint), ("top", "site"), ("logs", "site"), ("stop", "site"),
        ("stop", "site", "--user", bob), ("drain", "site"), ("undrain", "site"), ("ban", "site", bob),
        ("unban", "site", bob), ("reload", "site"), ("start", "site"), ("start", "site", "--detach"),
        ("restart", "site"), ("delete", "site", "--yes"), ("register", "site", "--again"), ("check", "site"),
        ("render", "site"), ("map", "site", "--identity", "bob@example.edu"), ("why", day.endpoint, "site"),
    ):  # fmt: skip
        said = day.run(*words, by=bob, expect=7)
        assert said.startswith("mep: not permitted"), said
        assert "running" not in said.replace("run this", "")
        assert "registered" not in said
    assert day.status()["pid"]


def test_stop_one_user_endpoint(day: Day) -> None:
    before = {who: day.result(who) for who in ("alice", "bob")}
    (row,) = day.of("alice")
    assert "stopped: 1" in day.run("stop", "site", "--uep", row["uep_id"], "--message", "go home")
    assert not pathlib.Path(f"/proc/{row['pid']}").exists()
    assert day.of("alice") == []
    assert day.of("bob")
    record = day.audit("stop")[-1]
    assert record["by_uid"] == 0
    assert record["stopped"] == [row["uep_id"]]
    assert "stopped: 0" in day.run("stop", "site", "--user", day.people["alice"].name)
    assert day.result("alice") != before["alice"]


def test_a_drain_lets_running_tasks_finish_and_new_ones_wait(day: Day) -> None:
    mark = f"{day.people['alice'].home}/began"
    with day.executor("alice") as executor:
        running = executor.submit(sleep_in, mark, 12)
        until("the task runs", lambda: os.path.exists(mark))
        day.run("drain", "site", "--message", "new disks until 18:00")
        assert day.of("alice")[0]["state"] == "draining"
        waiting = executor.submit(os.getpid)
        day.mep("restart", "site")  # a drain outlives it
        (drained,) = day.status()["restrictions"]
        assert (drained["kind"], drained["local_user"], drained["by_uid"]) == ("drain", "", 0)
        assert drained["message"] == "new disks until 18:00"
        assert running.result(timeout=RESULT_S) == "done"
        until("it ends by itself", lambda: not day.of("alice"))
        assert not waiting.done()
        log = day.mep.path("var", "site", "endpoint.log")
        until("a start is refused for now", lambda: "code=ENDPOINT_DRAINING" in log.read_text())
        assert not day.of("alice")
        failure = until("it is shown", lambda: day.status()["failures"])[-1]
        assert failure["code"] == "ENDPOINT_DRAINING"
        day.run("undrain", "site")
        assert waiting.result(timeout=RESULT_S) > 0
    assert day.status()["restrictions"] == []


def test_a_drain_that_refuses_tells_the_person_the_message(day: Day) -> None:
    bob = day.people["bob"].name
    day.run("stop", "site", "--user", bob)
    day.run("drain", "site", "--user", bob, "--message", "your queue is closed", "--refuse")
    error = refusal(day, "bob")
    assert error.code == EndpointDraining.code
    assert "your queue is closed. Submit again later." in str(error)
    assert day.result("alice")  # it is bob's alone
    assert f"The drain of account {bob} at endpoint site has ended." in day.run("undrain", "site", "--user", bob)
    assert "There was no drain of endpoint site." in day.run("undrain", "site")
    assert day.result("bob")


def test_a_ban_ends_what_runs_and_is_kept(day: Day) -> None:
    bob = day.people["bob"].name
    mark = f"{day.people['bob'].home}/began"
    with day.executor("bob") as executor:
        running = executor.submit(sleep_in, mark, 600)
        until("the task runs", lambda: os.path.exists(mark))
        said = day.run("ban", "site", bob, "--message", "see ticket 4711")
        assert "User endpoints ended: 1" in said
        with pytest.raises(AccountBanned, match="ticket 4711"):
            running.result(timeout=RESULT_S)
    until("it is gone", lambda: not day.of("bob"))
    shown = until("its end", lambda: [one for one in day.status()["failures"] if one["code"] == AccountBanned.code])
    assert {one["event"] for one in shown} == {"end"}
    text = day.run("status", "site")
    ended = rf"last user endpoint that was ended: {bob}'s, \d+ s ago, ended: banned by root \(ACCOUNT_BANNED"
    assert re.search(ended, text), text
    assert not re.search(r"last failure of a start: ACCOUNT_BANNED", text)
    assert f"{bob} is banned since" in text
    assert "by root: see ticket 4711" in text
    assert f"until `mep unban site {bob}`" in said
    mapped = day.run("map", "site", "--identity", "bob@example.edu", expect=1)
    assert f"Refused       {bob} is in denied_users" in mapped
    assert f"Banned        until `mep unban site {bob}`" in mapped
    error = refusal(day, "bob")
    assert error.code == AccountBanned.code
    assert "see ticket 4711" in str(error)
    assert day.result("alice")
    day.mep("restart", "site")
    day.mep("stop", "site")
    assert "by root: see ticket 4711" in day.run("status", "site", expect=3)
    day.mep("start", "site", "--detach")
    until("a link that is up", lambda: day.status()["link"] == "up")
    assert "ticket 4711" in str(refusal(day, "bob"))
    day.run("unban", "site", bob)
    assert "Usable        yes" in day.run("map", "site", "--identity", "bob@example.edu")
    assert day.result("bob")
    assert day.audit("ban")[-1]["local_user"] == bob


def test_logs(day: Day) -> None:
    day.result("alice")
    alice = day.people["alice"].name
    assert "INFO monitor[" in day.run("logs", "site", "-n", "5")
    said = day.run("logs", "site", alice)
    assert "joined the relay" in said  # her own log, read as her
    assert day.people["bob"].name not in said
    marks = {line.partition(" ")[0] for line in said.splitlines() if not line.startswith("---")}
    assert marks == {"[site]", f"[{alice}]"}
    assert all(line.startswith(f"[{alice}] ") for line in said.splitlines() if "joined the relay" in line)
    (row,) = day.of("alice")
    assert "joined the relay" in day.run("logs", "site", row["uep_id"])
    forged = "2026-01-01T00:00:00.000Z INFO monitor[1]: start answered"
    with open(row["log_path"], "a") as log:
        log.write(f"x\n{forged}\r{forged}\n")
    lines = day.run("logs", "site", alice).splitlines()
    assert [line for line in lines if forged in line] == [f"[{alice}] {forged}\\r{forged}"]
    with subprocess.Popen(
        [sys.executable, "-I", "-m", "mep.cli", "logs", "site", "-f", "-n", "0"],
        env=day.mep.environment, stdout=subprocess.PIPE, text=True, cwd="/",
    ) as follower:  # fmt: skip
        try:
            time.sleep(1)
            day.run("reload", "site")
            assert follower.stdout is not None
            assert until("the new line", lambda: "configuration" in follower.stdout.readline())
        finally:
            follower.kill()


def test_a_log_that_is_a_trap_is_not_read_as_root(day: Day) -> None:
    secret = pathlib.Path("/root/meptest-secret")
    secret.write_text("root's own words\n")
    secret.chmod(0o600)
    try:
        day.result("alice")
        (row,) = day.of("alice")
        log = pathlib.Path(row["log_path"])
        log.unlink()
        log.symlink_to(secret)
        assert "root's own words" not in day.run("logs", "site", row["uep_id"])
        log.unlink()
        os.mkfifo(log, 0o666)
        day.run("logs", "site", row["uep_id"])
    finally:
        secret.unlink()
        day.run("stop", "site", "--uep", row["uep_id"])
        log.unlink(missing_ok=True)


def test_a_refused_configuration_is_said_by_reload_and_status(day: Day) -> None:
    config = day.mep.path("etc", "site", "config.yaml")
    good = config.read_text()
    try:
        config.write_text(good + "no_such_key: 1\n")
        assert "was refused" in day.run("reload", "site", expect=9)
        day.run("status", "site", expect=9)
    finally:
        config.write_text(good)
    day.run("reload", "site")
    day.run("status", "site")


def test_a_killed_monitor(day: Day) -> None:
    day.result("alice")
    (row,) = day.of("alice")
    os.kill(day.status()["pid"], signal.SIGKILL)
    left = json.loads(day.run("status", "site", "--json", expect=3))
    (same,) = [one for one in left["user_endpoints"] if one["uep_id"] == row["uep_id"]]
    assert same["pid"] == row["pid"]
    assert same["person"] == "alice@example.edu"
    assert same["memory_bytes"] > 0
    assert row["uep_id"] in day.run("status", "site", expect=3)
    assert "not permitted" in day.run("status", "site", by=day.people["bob"].name, expect=7)
    day.mep("start", "site", "--detach")
    until("a link that is up", lambda: day.status()["link"] == "up")
    assert day.of("alice")[0]["pid"] == row["pid"]


@pytest.mark.parametrize(("columns", "rows"), [(160, 50), (60, 60)])
def test_top_stays_through_a_killed_monitor(day: Day, columns: int, rows: int) -> None:
    for who in ("alice", "bob"):
        day.result(who)
    (row,), (other,) = day.of("alice"), day.of("bob")
    argv = [sys.executable, "-I", "-m", "mep.cli", "top", "site", "--interval", "0.3"]
    with on_terminal(argv, columns, rows, day.mep.environment) as (terminal, process):
        until("the first look", lambda: row["uep_id"] in terminal.screen, details=lambda: terminal.screen)
        assert terminal.alternate
        killed = day.status()["pid"]
        os.kill(killed, signal.SIGSTOP)
        silent = f"the monitor (pid {killed}) gives no answer for"
        until("the silence", lambda: silent in terminal.words, details=lambda: terminal.screen)
        os.kill(killed, signal.SIGCONT)
        until("its words", lambda: "answers again after" in terminal.words, details=lambda: terminal.screen)
        os.kill(killed, signal.SIGKILL)
        gone = f"the monitor (pid {killed}) is gone for"
        until("the loss", lambda: gone in terminal.words, details=lambda: terminal.screen)
        assert {row["uep_id"], other["uep_id"]} <= set(terminal.words.split())  # whole, as their keepers recorded them
        assert "failures are unknown until it is back" in terminal.words
        os.kill(other["keeper_pid"], signal.SIGKILL)
        until("bob's has ended", lambda: other["uep_id"] not in terminal.screen)
        day.mep("start", "site", "--detach")
        until("the return", lambda: "it took over 1 of 2" in terminal.words, details=lambda: terminal.screen)
        assert f"before {killed})" in terminal.words
        assert f"ended meanwhile: {other['uep_id']} ({day.people['bob'].name})" in terminal.words
        until("the link", lambda: re.search(r"link +up", terminal.screen), details=lambda: terminal.screen)
        assert process.poll() is None
        terminal.press("q")
        assert process.wait(timeout=30) == 0
        until("the terminal as it was", lambda: not terminal.alternate and terminal.cursor_shown)
    until("a link that is up", lambda: day.status()["link"] == "up")


def test_a_link_that_is_down_has_an_exit_code(day: Day) -> None:
    day.relay.kill()
    try:
        until("the link is down", lambda: day.mep("status", "site", expect=8), unready=(AssertionError,))
    finally:
        day.relay.start()
    until("the link is up", lambda: day.status()["link"] == "up", unready=(AssertionError,))


def lines_of(user: str) -> list[str]:
    """Return the command lines of an account's processes, as ps prints them."""
    words = ["ps", "-ww", "-o", "args=", "-u", user]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.splitlines()


def test_ps_shows_endpoint_person_and_site(day: Day) -> None:
    day.result("alice")
    site = os.uname().nodename
    found = lines_of(day.people["alice"].name)
    for kind in ("mep.user_endpoint", "mep.forkserver", "mep.worker"):
        assert f"{kind}: site for alice@example.edu at {site}" in found, found
    manager, mapper = day.mep.helpers("site")
    assert f"mep.manager: site at {site}" in lines_of(manager.pw_name)
    assert f"mep.mapper: site at {site}" in lines_of(mapper.pw_name)


def test_a_stop_after_a_killed_monitor_tells_the_relay(day: Day) -> None:
    mark = f"{day.people['alice'].home}/left"
    with day.executor("alice") as executor:
        lost = executor.submit(sleep_in, mark, 600)
        until("the task runs", lambda: os.path.exists(mark))
        monitor = day.status()["pid"]
        os.kill(monitor, signal.SIGKILL)
        until("the monitor is gone", lambda: not pathlib.Path(f"/proc/{monitor}").exists())
        said = day.run("stop", "site")
        assert "User endpoints stopped that it had left:" in said
        assert "does not know yet" not in said
        assert json.loads(day.run("status", "site", "--json", expect=3))["user_endpoints"] == []
        with pytest.raises(MepError) as caught:  # the endpoint is stopped, and yet the task has its end
            lost.result(timeout=30)
        assert caught.value.code == "USER_ENDPOINT_LOST"
    day.mep("start", "site", "--detach")
    until("a link that is up", lambda: day.status()["link"] == "up")


def test_stop_remote(day: Day) -> None:
    monitor = day.status()["pid"]
    assert day.endpoint in day.run("stop", "site", "--remote")
    until("the monitor has ended", lambda: not pathlib.Path(f"/proc/{monitor}").exists())
    assert "ENDPOINT_OFFLINE" in day.run("stop", "site", "--remote", expect=5)
    # While it is stopped, its owner may still drain and ban for the next monitor.
    bob = day.people["bob"].name
    assert "only its owner" in day.run("drain", "site", "--user", bob, by=day.operator.name, expect=3)
    day.run("ban", "site", bob, "--message", "while it was stopped")
    day.run("reload", "site", expect=3)
    day.mep("start", "site", "--detach")
    until("a link that is up", lambda: day.status()["link"] == "up")
    assert "while it was stopped" in str(refusal(day, "bob"))
    day.run("unban", "site", bob)
    assert day.status()["restrictions"] == []
