"""A real start as root: the user endpoint's identity and resources, and the name of each refusal and failed stage."""

from __future__ import annotations

import json
import os
import pathlib
import pwd
import re
import signal
import subprocess

import pytest

from mep.boundary.messages import EndpointEnded, MapRequest, NotMapped, StartAnswered
from mep.boundary.resolved_config import Caps, Policy
from mep.root.kernel.syscalls import SECUREBITS_LOCKED
from tests.support.accounts import LocalAccount, account, group
from tests.support.monitor import (
    MonitorRun,
    ask,
    gone,
    map_next,
    new_uep_id,
    processes_of,
    running_monitor,
    start_as,
)
from tests.support.waiting import until


def status_of(pid: int) -> dict[str, str]:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_what_a_user_endpoint_is(alice: LocalAccount) -> None:
    with group([alice.name]) as (_, gid), running_monitor() as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name, write=f"{alice.home}/out")
        assert (answer.outcome, answer.code, answer.uep_id) == ("started", "", uep_id)
        assert answer.correlation_id == "corr-1"
        pid = run.record(uep_id)["uep_pid"]
        status = status_of(pid)
        assert status["Uid"].split() == [str(alice.uid)] * 4
        assert status["Gid"].split() == [str(alice.gid)] * 4
        assert {int(word) for word in status["Groups"].split()} == {alice.gid, gid}
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert (status["NoNewPrivs"], status["Umask"], status["SigBlk"]) == ("1", "0077", "0" * 16)
        assert status["NSsid"] == status["NSpgid"] == str(pid)


def test_what_a_user_endpoint_holds(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, write=f"{alice.home}/out")
        pid = run.record(uep_id)["uep_pid"]
        descriptors = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert [descriptors[fd] for fd in (0, 1, 2)] == ["/dev/null"] * 3
        assert "memfd:verified" in descriptors[3] and "memfd:bundle" in descriptors[4]
        assert descriptors[5].startswith("socket:")
        assert "memfd:mep-account" in descriptors[6]
        assert "memfd:mep-figures" in descriptors[7]
        assert set(descriptors) == {0, 1, 2, 3, 4, 5, 6, 7}
        known = json.loads(pathlib.Path(f"/proc/{pid}/fd/6").read_text())
        assert (known["uname"], known["uid"], known["gid"], known["dir"], known["groups"][0]) == (
            alice.name, alice.uid, alice.gid, alice.home, alice.gid,
        )  # fmt: skip
        environ = pathlib.Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
        variables = dict(one.partition("=")[::2] for one in environ)
        variables.pop("PWD", None)  # the stand-in interpreter is a shell, which adds it
        assert variables == {
            "HOME": alice.home, "USER": alice.name, "LOGNAME": alice.name,
            "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8",
        }  # fmt: skip
        assert os.readlink(f"/proc/{pid}/cwd") == alice.home
        assert int(pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 0
        limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 ", limits)
        written = pathlib.Path(alice.home, "out")
        assert written.stat().st_mode & 0o777 == 0o600
        assert '"bundle": "the bundle"' in written.read_text()


def test_ignored_signals_are_not_inherited(alice: LocalAccount) -> None:
    """Python ignores SIGPIPE and SIGXFSZ in the keeper; the program it execs must not start that way."""
    with MonitorRun() as run:
        shell = run.root / "python"
        shell.write_text(shell.read_text().rpartition("exec")[0] + 'cp /proc/$$/status "$HOME/status"\nexec sleep 60\n')
        manager, mapper = run.ready()
        ask(manager, 1)
        map_next(mapper, alice.name)
        written = pathlib.Path(alice.home, "status")
        text = until("the shell has written", lambda: written.exists() and written.read_text())
        written.unlink()
        assert "SigIgn:\t0000000000000000" in text


def test_securebits_are_locked(alice: LocalAccount) -> None:
    code = "import ctypes, os\nbits = ctypes.CDLL(None).prctl(27, 0, 0, 0, 0)\n"
    code += "open(os.environ['HOME'] + '/bits', 'w').write(str(bits))\n"
    with MonitorRun() as run:
        main = run.root / "uep_standin.py"
        main.write_text(code)
        manager, mapper = run.ready()
        _, answer = start_as(manager, mapper, alice.name)
        assert answer.code == "START_FAILED"
        written = pathlib.Path(alice.home, "bits")
        assert int(written.read_text()) == SECUREBITS_LOCKED
        written.unlink()


# --- refusals -----------------------------------------------------------------------------------------------


def refused(run: MonitorRun, answer: StartAnswered, local_name: str, stage: str, detail: str) -> None:
    """Check a refusal by policy: nothing local leaves the host, everything is in the audit log."""
    assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_REFUSED")
    assert answer.public == "This site's policy does not admit you. Ask its administrators, with the correlation id."
    assert local_name not in answer.public
    record = next(one for one in run.audit_records() if one["event"] == "start")
    assert (record["stage"], record["code"], record["local_user"]) == (stage, "ACCOUNT_REFUSED", local_name)
    assert detail in record["detail"]
    until("the record is gone", lambda: not run.record(answer.uep_id))


@pytest.mark.parametrize(
    ("user", "stage", "detail"),
    [
        ("root", "POLICY", "root is never used"),
        ("mep", "POLICY", "the endpoint's own accounts"),
        ("mep-idmap", "POLICY", "the endpoint's own accounts"),
        ("daemon", "POLICY", "allowed are 1000 to"),
        ("meptest-nobody-here", "LOOKUP_USER", "there is no account"),
    ],
)
def test_accounts_that_are_never_used(user: str, stage: str, detail: str) -> None:
    with running_monitor(policy=Policy(min_uid=1000 if user == "daemon" else 0)) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, user)
        refused(run, answer, user, stage, detail)


def test_alias_of_root_and_of_our_own_account() -> None:
    for uid, detail in ((0, "root is never used"), (pwd.getpwnam("mep").pw_uid, "the endpoint's own accounts")):
        with account(uid=uid) as alias, running_monitor(policy=Policy(min_uid=0)) as (run, manager, mapper):
            _, answer = start_as(manager, mapper, alias.name)
            refused(run, answer, alias.name, "POLICY", detail)


@pytest.mark.parametrize(
    ("policy", "detail"),
    [
        (Policy(min_uid=2**30), "allowed are"),
        (Policy(min_uid=0, max_uid=10), "allowed are"),
        (Policy(allowed_groups=["daemon", "no-such-group"]), "in none of allowed_groups"),
    ],
)
def test_policy_refuses(alice: LocalAccount, policy: Policy, detail: str) -> None:
    with running_monitor(policy=policy) as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name)
        refused(run, answer, alice.name, "POLICY", detail)


def test_denied_users_and_groups(alice: LocalAccount) -> None:
    with running_monitor(policy=Policy(denied_users=[alice.name])) as (run, manager, mapper):
        refused(run, start_as(manager, mapper, alice.name)[1], alice.name, "POLICY", "denied_users")
    with group([alice.name]) as (name, _):
        with running_monitor(policy=Policy(denied_groups=[name])) as (run, manager, mapper):
            refused(run, start_as(manager, mapper, alice.name)[1], alice.name, "POLICY", "denied group")
        with running_monitor(policy=Policy(allowed_groups=[name])) as (run, manager, mapper):
            assert start_as(manager, mapper, alice.name)[1].outcome == "started"


def test_denied_under_another_name_of_the_uid(alice: LocalAccount) -> None:
    """The kernel compares uids, so a policy does: a second spelling of a denied account is that account."""
    with account(uid=alice.uid) as alias, group([alice.name]) as (banned, _):
        detail = f"as {alice.name}, with the same uid"
        for policy in (Policy(denied_users=[alice.name]), Policy(denied_groups=[banned])):
            with running_monitor(policy=policy) as (run, manager, mapper):
                refused(run, start_as(manager, mapper, alias.name)[1], alias.name, "POLICY", detail)
        with running_monitor(policy=Policy(allowed_groups=[banned])) as (run, manager, mapper):
            answer = start_as(manager, mapper, alias.name)[1]
            refused(run, answer, alias.name, "POLICY", "none of allowed_groups")  # its process would not be in it


def test_denied_and_allowed_groups_under_another_name_of_the_gid(alice: LocalAccount) -> None:
    with group([alice.name]) as (_, gid), group([]) as (alias, _):
        subprocess.run(["groupmod", "--non-unique", "--gid", str(gid), alias], check=True, timeout=30)
        with running_monitor(policy=Policy(denied_groups=[alias])) as (run, manager, mapper):
            refused(run, start_as(manager, mapper, alice.name)[1], alice.name, "POLICY", f"denied group {alias}")
        with running_monitor(policy=Policy(allowed_groups=[alias])) as (run, manager, mapper):
            assert start_as(manager, mapper, alice.name)[1].outcome == "started"


@pytest.mark.parametrize(("allowed", "left"), [([], "group 0"), (["root"], "group disk"), (["root", "disk"], "")])
def test_a_secondary_group_that_is_as_good_as_root(allowed: list[str], left: str) -> None:
    with (
        account() as who,
        running_monitor(policy=Policy(allowed_privileged_groups=allowed)) as (run, manager, mapper),
    ):
        subprocess.run(["usermod", "--append", "--groups", "root,disk", who.name], check=True, timeout=30)
        answer = start_as(manager, mapper, who.name)[1]
        if left:
            refused(run, answer, who.name, "POLICY", f"is in {left}, which is privileged")
        else:
            assert answer.outcome == "started"


def test_shell_that_is_no_login_shell() -> None:
    with account(shell="/usr/sbin/nologin") as who:
        with running_monitor(policy=Policy(require_valid_shell=True)) as (run, manager, mapper):
            refused(run, start_as(manager, mapper, who.name)[1], who.name, "POLICY", "/usr/sbin/nologin")
        with running_monitor() as (run, manager, mapper):
            assert start_as(manager, mapper, who.name)[1].outcome == "started"


def test_refusal_of_the_mapper_is_passed_on() -> None:
    with running_monitor() as (_run, manager, mapper):
        for ref, code, outcome in ((1, "IDENTITY_NOT_MAPPED", "refused"), (2, "START_REQUEST_STALE", "unavailable")):
            ask(manager, ref)
            request, descriptors = mapper.take(MapRequest)
            os.close(descriptors[0])
            mapper.send(NotMapped(request.ref, "", code, "public", "for the log", "corr", "who"))
            answer = manager.take(StartAnswered)[0]
            assert (answer.ref, answer.outcome, answer.code, answer.public) == (ref, outcome, code, "public")
            assert answer.correlation_id == "corr"


# --- failed stages -------------------------------------------------------------------------------------------


def failed(run: MonitorRun, answer: StartAnswered, stage: str, detail: str) -> None:
    assert (answer.outcome, answer.code) == ("refused", "START_FAILED")
    assert f"(at stage {stage})" in answer.public
    record = next(one for one in run.audit_records() if one["event"] == "start")
    assert record["stage"] == stage
    assert detail in record["detail"]


def test_interpreter_that_cannot_be_executed(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        (run.root / "python").chmod(0o744)
        failed(run, start_as(manager, mapper, alice.name)[1], "EXEC", "Permission denied")


def test_interpreter_that_is_gone(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        (run.root / "python").unlink()
        failed(run, start_as(manager, mapper, alice.name)[1], "EXEC", "No such file")


def test_account_without_a_home_starts_in_the_root_directory() -> None:
    with account(home=False) as who, running_monitor() as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, who.name)
        assert answer.outcome == "started"
        assert os.readlink(f"/proc/{run.record(uep_id)['uep_pid']}/cwd") == "/"


def test_home_that_the_user_may_not_enter() -> None:
    with account() as who, running_monitor() as (run, manager, mapper):
        os.chown(who.home, 0, 0)
        os.chmod(who.home, 0o700)
        uep_id, answer = start_as(manager, mapper, who.name)
        assert answer.outcome == "started"
        assert os.readlink(f"/proc/{run.record(uep_id)['uep_pid']}/cwd") == "/"


def test_user_endpoint_that_reports_a_failure(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name, mode="fail")
        assert (answer.outcome, answer.code) == ("refused", "ENDPOINT_MISCONFIGURED")
        assert answer.public == "public [31m text"
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert "detail for the administrator" in record["detail"] and record["stage"] == "READY"


def test_user_endpoint_that_has_something_for_the_administrator(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name, mode="notice")
        assert answer.outcome == "started"
        until("a line in the log", lambda: "user endpoint reports" in run.log_text())
        (line,) = [line for line in run.log_text().splitlines() if "user endpoint reports" in line]
        assert f"uep={uep_id}" in line
        assert "code=FUNCTION_CODE_CHANGED" in line
        assert "function f [31m is=not the pinned one" in line
        assert run.record(uep_id)["state"] == "running"


def test_user_endpoint_that_ends_without_a_word(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        failed(run, start_as(manager, mapper, alice.name, mode="exit")[1], "READY", "exit status 3")


def test_user_endpoint_that_never_is_ready(alice: LocalAccount) -> None:
    with running_monitor(caps=Caps(start_timeout_s=0.7)) as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name, mode="silent")
        assert (answer.outcome, answer.code) == ("refused", "START_TIMEOUT")
        assert "within 0.7 s" in answer.public
        until("nothing is left", lambda: not run.record(uep_id))


def test_garbage_reports_are_dropped(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        _, answer = start_as(manager, mapper, alice.name, mode="garbage")
        assert answer.outcome == "started"
        assert run.log_text().count("dropped malformed report") == 5


def test_keeper_that_hangs_is_ended(alice: LocalAccount) -> None:
    """As NSS or PAM may make it. The start is answered, and the user endpoint does not outlive its keeper."""
    with running_monitor(caps=Caps(start_timeout_s=0.5)) as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name, mode="silent")
        keeper = until("the keeper has its child", lambda: run.record(uep_id).get("uep_pid") and run.record(uep_id))
        os.kill(keeper["keeper_pid"], signal.SIGSTOP)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("refused", "START_TIMEOUT")
        until("the keeper is gone", lambda: gone(keeper["keeper_pid"], keeper["keeper_start"]))
        until("the user endpoint is gone", lambda: gone(keeper["uep_pid"], keeper["uep_start"]))


# --- several -----------------------------------------------------------------------------------------------


def test_same_user_endpoint_twice(alice: LocalAccount) -> None:
    with running_monitor() as (_run, manager, mapper):
        uep_id, first = start_as(manager, mapper, alice.name)
        _, second = start_as(manager, mapper, alice.name, ref=2, uep_id=uep_id)
        assert (first.outcome, second.outcome, second.ref) == ("started", "already_running", 2)


def test_second_request_joins_a_start_in_progress(alice: LocalAccount) -> None:
    with running_monitor(caps=Caps(start_timeout_s=1.0)) as (run, manager, mapper):
        uep_id = new_uep_id()
        for ref in (1, 2):
            ask(manager, ref)
            map_next(mapper, alice.name, uep_id=uep_id, mode="silent")
        answers = {manager.take(StartAnswered)[0].ref for _ in (1, 2)}
        assert answers == {1, 2}
        assert run.log_text().count("START_TIMEOUT") == 1


def test_caps_of_one_person(alice: LocalAccount) -> None:
    with running_monitor(caps=Caps(max_user_endpoints_per_user=1)) as (run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        _, answer = start_as(manager, mapper, alice.name, ref=2)
        assert (answer.outcome, answer.code) == ("unavailable", "PERSON_LIMIT")
        assert "(1)" in answer.public
        with account() as bob:
            assert start_as(manager, mapper, bob.name, ref=3)[1].outcome == "started"
            run.stop()


def test_cap_of_the_endpoint(alice: LocalAccount) -> None:
    with running_monitor(caps=Caps(max_user_endpoints=1)) as (_run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome == "started"
        _, answer = start_as(manager, mapper, alice.name, ref=2)
        assert (answer.outcome, answer.code) == ("unavailable", "SITE_BUSY")


def test_starts_beyond_max_starting_are_begun_when_they_are_asked_for_again(alice: LocalAccount) -> None:
    with running_monitor(caps=Caps(max_starting=2, max_user_endpoints_per_user=50)) as (run, manager, mapper):
        ids = [new_uep_id() for _ in range(4)]
        for ref, uep_id in enumerate(ids):
            ask(manager, ref)
            map_next(mapper, alice.name, uep_id=uep_id, mode="silent")
        answers = {one.ref: one for one in (manager.take(StartAnswered)[0] for _ in ids[1:])}
        assert {ref: one.outcome for ref, one in answers.items()} == dict.fromkeys((1, 2, 3), "try_later")
        assert answers[1].code == "SITE_BUSY" and "no more than 2 user endpoints at a time" in answers[1].public
        until("the first hangs", lambda: run.record(ids[0]).get("uep_pid"))
        run.end(ids[0])
        assert manager.take(StartAnswered)[0].ref == 0
        for ref, uep_id in enumerate(ids[1:], start=10):
            assert start_as(manager, mapper, alice.name, ref=ref, uep_id=uep_id)[1].outcome == "started"
        until("they run", lambda: len(run.status().get("user_endpoints", [])) == 3)


def test_one_hanging_start_delays_nobody(alice: LocalAccount) -> None:
    with running_monitor() as (_run, manager, mapper):
        ask(manager, 1)
        map_next(mapper, alice.name, mode="silent")
        answer = start_as(manager, mapper, alice.name, ref=2)[1]
        assert (answer.ref, answer.outcome) == (2, "started"), "before the other's time is over"


def test_end_that_the_user_endpoint_announces(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, life_s=0, ended="IDLE")
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code, ended.public) == (uep_id, "IDLE", "nothing to do")
        until("nothing is left", lambda: not run.record(uep_id) and not run.status()["user_endpoints"])
        _, again = start_as(manager, mapper, alice.name, ref=2, uep_id=uep_id)
        assert again.outcome == "started"


def test_start_while_the_former_process_is_ending(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        with account() as bob:
            # The person's mapping has changed: the old process ends first, then the new one starts.
            _, answer = start_as(manager, mapper, bob.name, ref=2, uep_id=uep_id)
            assert answer.outcome == "started"
            assert run.record(uep_id)["uid"] == bob.uid
            run.stop()


def test_double_forked_descendants_do_not_survive(alice: LocalAccount) -> None:
    with running_monitor() as (_run, manager, mapper):
        _uep_id, _ = start_as(manager, mapper, alice.name, mode="orphans", life_s=0.2, ended="IDLE")
        assert manager.take(EndpointEnded)[0].code == "IDLE"
        assert not processes_of(alice.uid)


def test_chain_of_forks_does_not_survive(alice: LocalAccount) -> None:
    with running_monitor() as (_, manager, mapper):
        start_as(manager, mapper, alice.name, mode="respawn", life_s=0.2, ended="IDLE")
        assert manager.take(EndpointEnded)[0].code == "IDLE"
        assert not processes_of(alice.uid)


def test_flood_of_reports_is_not_listened_to(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name, mode="flood")
        assert answer.outcome == "started"
        keeper = run.record(uep_id)["keeper_pid"]
        # Open are the lock, the figures, two ends of the wake-up pipe, the monitor's channel and the listening socket.
        until("the report channel is closed", lambda: len(os.listdir(f"/proc/{keeper}/fd")) <= 9)
        assert run.log_text().count("dropped malformed report") < 100


@pytest.mark.parametrize("places", [2, 4])
def test_starts_of_one_person_that_hang_take_half_of_the_places(alice: LocalAccount, places: int) -> None:
    with account() as bob, running_monitor(caps=Caps(max_starting=places)) as (run, manager, mapper):
        for ref in range(places + 2):
            ask(manager, ref)
            map_next(mapper, alice.name, mode="silent")
        later = [manager.take(StartAnswered)[0].outcome for _ in range(places + 2 - places // 2)]
        assert set(later) == {"try_later"}
        until("they hang", lambda: len(run.status().get("user_endpoints", [])) >= places // 2)
        for ref in (91, 92):
            assert start_as(manager, mapper, bob.name, ref=ref)[1].outcome == "started"
        assert len(processes_of(alice.uid)) <= max(1, places // 2)


def test_whoever_has_all_that_they_may_takes_no_place(alice: LocalAccount) -> None:
    """The cap is checked by name before a keeper is forked, and starts under way count too."""
    with running_monitor(caps=Caps(max_user_endpoints_per_user=1)) as (run, manager, mapper):
        ask(manager, 1)
        map_next(mapper, alice.name, mode="silent")
        until("it is under way", lambda: run.status().get("user_endpoints"))
        _, answer = start_as(manager, mapper, alice.name, ref=2)
        assert (answer.outcome, answer.code) == ("unavailable", "PERSON_LIMIT") and "one person (1)" in answer.public
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert record["stage"] == "CAPS" and "keeper_pid" not in record


def test_a_start_that_waits_too_long_for_the_process_before_it_says_so(alice: LocalAccount) -> None:
    caps = Caps(max_starting=4, start_timeout_s=2.0, stop_grace_s=10.0)
    with account() as bob, running_monitor(caps=caps) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name, mode="ignore-term")
        _, answer = start_as(manager, mapper, bob.name, ref=2, uep_id=uep_id)
        assert (answer.ref, answer.outcome, answer.code) == (2, "unavailable", "SITE_BUSY")
        assert "is still ending" in answer.public
        os.kill(run.record(uep_id)["uep_pid"], signal.SIGKILL)


def test_stop_while_a_start_is_under_way(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name, mode="silent")
        record = until("it is spawned", lambda: run.record(uep_id).get("uep_pid") and run.record(uep_id))
        os.kill(run.pid, signal.SIGTERM)
        answer = manager.take(StartAnswered)[0]
        assert (answer.outcome, answer.code) == ("unavailable", "STOPPED")
        assert run.stop() == 0
        assert gone(record["uep_pid"], record["uep_start"]) and gone(record["keeper_pid"], record["keeper_start"])
