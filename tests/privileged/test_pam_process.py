"""The PAM process: its identity, and that a session is closed once and its credentials deleted, whichever is killed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mep.boundary.messages import EndpointEnded, EndpointRunning, StartAnswered
from mep.boundary.resolved_config import Caps
from mep.boundary.runtime_files import start_ticks
from tests.support.accounts import LocalAccount
from tests.support.monitor import MonitorRun, ask, gone, map_next, processes_of, running_monitor, start_as
from tests.support.pam import Site, pam_monitor
from tests.support.waiting import until

LIFE = ["account", "open_session", "close_session"]


def recording(site: Site) -> list[str]:
    return [f"{kind} required pam_exec.so quiet {site.recorder()}" for kind in ("account", "session")]


def kill(run: MonitorRun, uep_id: str, what: str) -> dict[str, int]:
    """SIGKILL one of a user endpoint's processes; return the record as it was."""
    record = run.record(uep_id)
    assert record[f"{what}_pid"] > 1
    os.kill(record[f"{what}_pid"], signal.SIGKILL)
    return record


def is_gone(record: dict[str, int], what: str) -> bool:
    return gone(record[f"{what}_pid"], record[f"{what}_start"])


def parent_of(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def maps(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/maps").read_text()


def test_who_is_who(alice: LocalAccount, site: Site) -> None:
    """The user endpoint is the keeper's child; libpam is in the PAM process alone, which the user cannot signal."""
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        keeper, pam = record["keeper_pid"], record["pam_pid"]
        assert parent_of(record["uep_pid"]) == parent_of(pam) == keeper
        assert "libpam" in maps(pam) and "libpam" not in maps(keeper)
        assert pathlib.Path(f"/proc/{pam}/comm").read_text() == "mep-pam\n"
        assert os.stat(f"/proc/{pam}").st_uid == 0 and record["pam_start"] == start_ticks(pam)
        for number in (signal.SIGKILL, signal.SIGTERM, 0):
            said = subprocess.run(
                [sys.executable, "-I", "-c", f"import os; os.kill({pam}, {int(number)})"],
                user=alice.uid, group=alice.gid, extra_groups=[alice.gid], capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert "PermissionError" in said.stderr
        # A service manager's signals to all processes are for the keeper to act on.
        os.kill(pam, signal.SIGTERM)
        os.kill(pam, signal.SIGHUP)
        assert start_as(manager, mapper, alice.name, ref=2, uep_id=uep_id)[1].outcome == "already_running"
        assert not is_gone(record, "pam")
        os.kill(record["uep_pid"], signal.SIGKILL)
        until("both are gone", lambda: is_gone(record, "pam") and is_gone(record, "keeper"))
        assert site.recorded() == LIFE


def test_without_pam_there_is_none(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        keeper = record["keeper_pid"]
        assert record["pam_pid"] == 0
        children = pathlib.Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        assert children == [str(record["uep_pid"])]


def test_keeper_killed(alice: LocalAccount, site: Site) -> None:
    """The monitor, now the parent of all of them, kills the leftovers, but not the process that closes the session."""
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = kill(run, uep_id, "keeper")
        ended, _ = manager.take(EndpointEnded)
        assert (ended.uep_id, ended.code) == (uep_id, "USER_ENDPOINT_LOST")
        until("the PAM process is gone", lambda: is_gone(record, "pam"))
        assert site.recorded() == LIFE
        assert not processes_of(alice.uid) and not run.record(uep_id)
        assert start_as(manager, mapper, alice.name, ref=2)[1].outcome == "started"


def test_keeper_and_monitor_killed(alice: LocalAccount, site: Site) -> None:
    """Only the PAM process is left; the next monitor finds a record without a keeper."""
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        record = kill(run, uep_id, "keeper")
        until("the PAM process is gone", lambda: is_gone(record, "pam"))
        assert site.recorded() == LIFE and is_gone(record, "uep")
        run.start()
        manager, mapper = run.ready()
        assert manager.take(EndpointEnded)[0].uep_id == uep_id
        assert not run.record(uep_id)


def test_stop_waits_for_a_session_that_closes_without_its_keeper(alice: LocalAccount, site: Site) -> None:
    script = site.script("slow", f'[ "$PAM_TYPE" = close_session ] && sleep 1\necho $PAM_TYPE >> {site.record}')
    with pam_monitor(site, f"session required pam_exec.so {script}") as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = kill(run, uep_id, "keeper")
        manager.take(EndpointEnded)
        assert run.stop() == 0
        assert is_gone(record, "pam") and site.recorded() == LIFE[1:]


def test_stop_does_not_wait_for_a_module_that_opens(alice: LocalAccount, site: Site) -> None:
    """The keeper still hears its monitor: it ends long before the start's deadline, and before it would be killed."""
    script = site.script("slow", f'echo $PAM_TYPE >> {site.record}\n[ "$PAM_TYPE" = open_session ] && exec sleep 300')
    caps = Caps(start_timeout_s=240, stop_grace_s=60)
    with pam_monitor(site, f"session required pam_exec.so {script}", caps=caps) as (run, manager, mapper):
        ask(manager, 1)
        map_next(mapper, alice.name)
        until("the module runs", lambda: site.recorded() == ["open_session"])
        assert run.stop(seconds=60) == 0
        records = [one for one in run.audit_records() if one["event"] == "start"]
        assert [(one["code"], one["stage"]) for one in records] == [("STOPPED", "PAM_SESSION")]


@pytest.mark.parametrize("adopted", [False, True])
def test_pam_process_killed(alice: LocalAccount, site: Site, adopted: bool) -> None:
    """People's work goes on; at the end the session is closed with a new transaction."""
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = kill(run, uep_id, "pam")
        until("it is logged", lambda: "the PAM process was killed" in run.log_text())
        if adopted:
            assert run.process is not None
            run.process.kill()
            run.process.wait()
            run.start()
            manager, mapper = run.ready()
            assert manager.take(EndpointRunning)[0].uep_id == uep_id
        assert start_as(manager, mapper, alice.name, ref=2, uep_id=uep_id)[1].outcome == "already_running"
        assert not is_gone(record, "uep") and site.recorded() == LIFE[:2]
        os.kill(record["uep_pid"], signal.SIGTERM)
        until("the keeper is gone", lambda: is_gone(record, "keeper"))
        assert site.recorded() == LIFE


def test_adopted(alice: LocalAccount, site: Site) -> None:
    with pam_monitor(site, *recording(site)) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = run.record(uep_id)
        run.stop(signal.SIGUSR1)
        assert not is_gone(record, "pam") and not is_gone(record, "uep")
        run.start()
        manager, mapper = run.ready()
        assert manager.take(EndpointRunning)[0].uep_id == uep_id
        assert run.record(uep_id) == record
        assert run.stop() == 0
        until("all are gone", lambda: all(is_gone(record, what) for what in ("keeper", "pam", "uep")))
        assert site.recorded() == LIFE


@pytest.mark.parametrize("what", ["keeper", "pam"])
def test_killed_while_a_module_runs(alice: LocalAccount, site: Site, what: str) -> None:
    """In the middle of opening: nothing is started, and the surviving process undoes the work so far."""
    body = f'echo $PAM_TYPE >> {site.record}\n[ "$PAM_TYPE" = close_session ] || {{ touch {site.root}/on; sleep 2; }}'
    with pam_monitor(site, f"session required pam_exec.so {site.script('slow', body)}") as (run, manager, mapper):
        ask(manager, 1)
        uep_id = map_next(mapper, alice.name)
        until("the module runs", lambda: (site.root / "on").exists())
        record = until("it is recorded", lambda: (found := run.record(uep_id)).get("pam_pid") and found)
        kill(run, uep_id, what)
        answer, _ = manager.take(StartAnswered)
        assert answer.code == "START_INTERRUPTED"
        if what == "pam":
            assert "the PAM process ended" in answer.public
        until("all are gone", lambda: is_gone(record, "keeper") and is_gone(record, "pam"))
        assert not processes_of(alice.uid)
        assert site.recorded() == (LIFE[1:] if what == "keeper" else LIFE[1:2])


def test_module_that_hangs_at_the_close(alice: LocalAccount, site: Site) -> None:
    """The person is told at once. The module and its children are ended after its time; the hook still runs."""
    body = f'[ "$PAM_TYPE" = close_session ] || exit 0\necho $$ >> {site.record}\nexec sleep 600'
    with pam_monitor(site, f"session required pam_exec.so {site.script('hang', body)}") as (run, manager, mapper):
        ids = {what: start_as(manager, mapper, alice.name, ref=ref)[0] for ref, what in enumerate(("keeper", "uep"))}
        killed = [kill(run, uep_id, what) for what, uep_id in ids.items()]
        assert {manager.take(EndpointEnded)[0].uep_id for _ in ids} == set(ids.values())
        until("both modules hang", lambda: len(site.recorded()) == 2)
        assert not processes_of(alice.uid)
        modules = site.recorded()
        until("PAM is ended", lambda: all(is_gone(record, "pam") for record in killed), 60)
        until("the modules' children are ended", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in modules), 60)
        until("nothing is left of them", lambda: not any(map(run.record, ids.values())))
        assert "PAM did not close a session in time" in run.log_text()


MODULE = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
/* From Linux-PAM's security/_pam_types.h, so that its headers need not be there. */
typedef struct pam_handle pam_handle_t;
enum { PAM_PROMPT_ECHO_OFF = 1, PAM_ESTABLISH_CRED = 2, PAM_DELETE_CRED = 4, PAM_NEW_AUTHTOK_REQD = 12 };
extern int pam_prompt(pam_handle_t *h, int style, char **said, const char *text, ...);
static int note(const char *what) {
    FILE *f = fopen("%(record)s", "a"); fprintf(f, "%%s\n", what); fclose(f); return 0; }
int pam_sm_authenticate(pam_handle_t *h, int f, int c, const char **v) { return note("authenticate"); }
int pam_sm_setcred(pam_handle_t *h, int flags, int c, const char **v) {
    return note(flags & PAM_DELETE_CRED ? "delete_cred" : flags & PAM_ESTABLISH_CRED ? "establish_cred" : "other"); }
int pam_sm_acct_mgmt(pam_handle_t *h, int flags, int c, const char **v) {
    char *said = NULL;
    if (c == 0) return note("account");
    return pam_prompt(h, PAM_PROMPT_ECHO_OFF, &said, "New password: ") == 0 ? 0 : PAM_NEW_AUTHTOK_REQD; }
int pam_sm_open_session(pam_handle_t *h, int f, int c, const char **v) {
    struct rlimit files;
    note("open");
    if (!c || !(files.rlim_cur = atoi(v[0]))) return c && unshare(CLONE_NEWNS);
    files.rlim_max = 4096;
    return setrlimit(RLIMIT_NOFILE, &files); }
int pam_sm_close_session(pam_handle_t *h, int f, int c, const char **v) { return note("close"); }
"""


@pytest.fixture
def module(site: Site) -> str:
    """A module that records every call of it, and asks for a password where it is given an argument."""
    source = site.write("module.c", MODULE % {"record": site.record})
    path = site.root / "pam_meptest.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source), "-l:libpam.so.0"], check=True)
    return str(path)


WHOLE = ["account", "establish_cred", "open", "close", "delete_cred"]


@pytest.mark.parametrize("killed", ["uep", "keeper", "pam"])
def test_credentials_are_deleted(alice: LocalAccount, site: Site, module: str, killed: str) -> None:
    """A module of our own sees every call, and no authentication."""
    lines = [f"{kind} required {module}" for kind in ("auth", "account", "session")]
    with pam_monitor(site, *lines) as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        record = kill(run, uep_id, killed)
        if killed == "pam":
            until("it is known", lambda: "the PAM process was killed" in run.log_text())
            os.kill(record["uep_pid"], signal.SIGTERM)
        until("it is closed", lambda: site.recorded() == WHOLE)
        until("nothing is left", lambda: is_gone(record, "keeper") and is_gone(record, "pam"))
        assert site.recorded() == WHOLE


@pytest.mark.parametrize(("descriptors", "stage"), [(4, "FORK"), (40, "DESCRIPTORS")])
def test_limit_of_a_module_that_leaves_no_room(
    alice: LocalAccount, site: Site, module: str, descriptors: int, stage: str
) -> None:
    """The limit holds for the PAM process too until it's put back. The start fails by name; the session is closed."""
    lines = [f"auth required {module}", f"account required {module}", f"session required {module} {descriptors}"]
    with pam_monitor(site, *lines) as (run, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].outcome != "started"
        until("it is closed", lambda: site.recorded() == WHOLE)
        assert [one["stage"] for one in run.audit_records() if one["event"] == "start"] == [stage]
        assert "unexpected error" not in run.log_text()


@pytest.mark.parametrize(
    ("kind", "signal_name", "code"),
    [
        ("account", "KILL", "START_INTERRUPTED"),
        ("session", "KILL", "START_INTERRUPTED"),
        ("session", "SEGV", "START_FAILED"),
    ],
)
def test_a_pam_process_that_is_killed_in_a_start_says_nothing_against_another(
    alice: LocalAccount, site: Site, kind: str, signal_name: str, code: str
) -> None:
    killer = site.script("killer", f"kill -{signal_name} $PPID; sleep 60")
    with pam_monitor(site, f"{kind} required pam_exec.so quiet {killer}") as (_, manager, mapper):
        assert start_as(manager, mapper, alice.name)[1].code == code


def test_module_that_asks(alice: LocalAccount, site: Site, module: str) -> None:
    with pam_monitor(site, f"account required {module} ask") as (run, manager, mapper):
        answer = start_as(manager, mapper, alice.name)[1]
        assert answer.code == "NOT_ADMITTED_NOW"  # the person may change the password
        assert "password" not in answer.public
        assert "new one required" in answer.public
        record = next(one for one in run.audit_records() if one["event"] == "start")
        assert "asks for an answer, which is impossible here: New password:" in record["detail"]


HIDE = """
import ctypes, glob, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result: raise OSError(ctypes.get_errno(), "mount")
checked(libc.unshare(0x20000))
checked(libc.mount(b"none", b"/", None, 0x44000, None))
for path in {os.path.realpath(one) for one in glob.glob("/usr/lib/*/libpam.so.0") + glob.glob("/lib*/libpam.so.0")}:
    checked(libc.mount(b"/dev/null", path.encode(), None, 0x1000, None))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("enabled", [True, False])
def test_libpam_missing(alice: LocalAccount, site: Site, enabled: bool) -> None:
    """Hidden in the monitor's mount namespace. Without PAM this has no effect; with PAM, the error gives the reason."""
    pam = site.define()
    run = MonitorRun(**({"pam": pam} if enabled else {}))
    run.before = [sys.executable, "-I", "-c", HIDE]
    with run:
        manager, mapper = run.ready()
        answer = start_as(manager, mapper, alice.name)[1]
        if not enabled:
            assert answer.outcome == "started"
            return
        assert answer.code == "START_FAILED" and "PAM_ACCOUNT" in answer.public
        assert "libpam" in next(one for one in run.audit_records() if one["event"] == "start")["detail"]


def test_namespace_of_a_module_is_the_user_endpoints_alone(alice: LocalAccount, site: Site, module: str) -> None:
    """A module that unshares its caller, as pam_namespace does: the keeper stays in the host's namespace."""
    with pam_monitor(site, f"session required {module} unshare") as (run, manager, mapper):
        uep_id, answer = start_as(manager, mapper, alice.name)
        assert answer.outcome == "started"
        record = run.record(uep_id)
        who = ["self", record["keeper_pid"], record["uep_pid"]]
        ours, keeper, user = (os.readlink(f"/proc/{one}/ns/mnt") for one in who)
        assert keeper == ours != user
