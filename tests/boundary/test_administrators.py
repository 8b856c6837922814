"""The administrators' socket against hostile peers: who gets in, and what a member of the group cannot do.

A real monitor; the peers are real processes of other accounts, so the kernel's answers are real too.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pathlib
import pwd
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mep.boundary import figures
from mep.boundary.channel import encode
from mep.boundary.errors import ConfigRefused
from mep.boundary.messages import (
    MAX_ADMIN_ROWS,
    AdminBan,
    AdminDone,
    AdminDrain,
    AdminEndpoint,
    AdminFailure,
    AdminList,
    AdminLog,
    AdminReload,
    AdminRestriction,
    AdminRestrictions,
    AdminStop,
    AdminUnban,
    AdminUndrain,
    EndpointEnded,
    EndpointRevoked,
    ManagerReady,
    Message,
    Shutdown,
    StartsAllowed,
)
from mep.boundary.restrictions import RestrictionKind, Restrictions
from tests.support.accounts import LocalAccount, account, create_account, unique_name
from tests.support.monitor import MonitorRun, Peer, running_monitor, start_as
from tests.support.waiting import until

pytestmark = pytest.mark.root
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def alice() -> Iterator[LocalAccount]:
    with account() as made:
        yield made


@pytest.fixture(scope="module")
def group() -> Iterator[tuple[int, LocalAccount]]:
    """A group of administrators and its member."""
    name = unique_name()
    subprocess.run(["groupadd", name], check=True, timeout=30)
    try:
        with account() as member:
            subprocess.run(["usermod", "-aG", name, member.name], check=True, timeout=30)
            yield grp.getgrnam(name).gr_gid, member
    finally:
        subprocess.run(["groupdel", name], check=False, timeout=30)


_ASK = """
import os, socket, sys
one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
try:
    one.connect(sys.argv[1])
    one.send(bytes.fromhex(sys.argv[2]))
    print((one.recv(65536) or b"closed").hex())
except OSError as error:
    print(error.strerror)
"""


def ask_as(run: MonitorRun, uid: int, gid: int, groups: list[int], message: Message) -> str:
    """Return what a process with these ids gets for a message: an answer's bytes in hexadecimal, or an error."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ASK, str(run.run / "admin" / "socket"), encode(message).hex()],
        user=uid, group=gid, extra_groups=groups, capture_output=True, text=True, timeout=60, check=True, cwd="/",
    )  # fmt: skip
    said = done.stdout.strip()
    return "closed" if said == b"closed".hex() else said


DONE = bytes([94]).hex()


def test_who_gets_in(group: tuple[int, LocalAccount], alice: LocalAccount) -> None:
    gid, member = group
    with running_monitor(admin_gid=gid) as (run, _, _mapper):
        directory = run.run / "admin"
        assert (directory.stat().st_mode & 0o777, directory.stat().st_uid, directory.stat().st_gid) == (0o710, 0, gid)
        assert ask_as(run, member.uid, member.gid, [gid], AdminList("")).startswith(DONE)
        assert ask_as(run, alice.uid, alice.gid, [], AdminList("")) == "Permission denied"
        # Even where modes let others reach the socket, the monitor asks the kernel.
        directory.chmod(0o711)
        (directory / "socket").chmod(0o666)
        said = ask_as(run, alice.uid, alice.gid, [], AdminList(""))
        assert said in {"closed", "Connection reset by peer", "Broken pipe"}
        until("it is logged", lambda: f"refused an administrator's connection uid={alice.uid}" in run.log_text())
        # The endpoint's own accounts are never administrators, whichever groups they are in.
        mapper = pwd.getpwnam("mep-idmap")
        said = ask_as(run, mapper.pw_uid, mapper.pw_gid, [gid], AdminList(""))
        assert not said.startswith(DONE)
        assert ask_as(run, 0, 0, [], AdminList("")).startswith(DONE)


def test_without_a_group_only_root_gets_in(group: tuple[int, LocalAccount]) -> None:
    gid, member = group
    with running_monitor() as (run, _, _mapper):
        assert (run.run / "admin").stat().st_mode & 0o777 == 0o700
        assert ask_as(run, member.uid, member.gid, [gid], AdminList("")) == "Permission denied"
        for name in ("status.json", "admin/socket"):
            assert (run.run / name).stat().st_mode & 0o077 == 0
        done, rows = Peer(run).ask(AdminList(""))
        assert (done.count, done.more, rows) == (0, 0, [])


HOSTILE = {
    "unknown type": b"\xff",
    "truncated": encode(AdminList(""))[:-1],
    "too long": encode(AdminList("")) + b"\0",
    "oversized": bytes([80]) + b"A" * 20_000,
    "over its cap": bytes([80]) + (37).to_bytes(2, "big") + b"A" * 37,
    "a manager's message": encode(ManagerReady(version="x")),
    "the monitor's own message": encode(AdminDone(0, 0, "")),
    "a monitor's order": encode(Shutdown(reason="x")),
    "neither account nor user endpoint": encode(AdminStop("", "", "")),
    "both": encode(AdminStop(NOBODY, "alice", "")),
    "no id": encode(AdminStop("../../../../etc/passwd", "", "")),
    "no account": encode(AdminDrain(0, "a/b", "")),
    "an account of an option's form": encode(AdminUndrain("-rf")),
    "a flag that is none": encode(AdminDrain(2, "", "")),
    "a ban of everybody": encode(AdminBan(0, "", "")),
    "a ban of a uid below -1": encode(AdminBan(-2, "alice", "")),
}


def test_hostile_frames_end_the_connection_and_nothing_else() -> None:
    with running_monitor() as (run, manager, mapper):
        for what, frame in HOSTILE.items():
            peer = Peer(run)
            peer.socket.send(frame)
            assert until(what, peer.is_closed), what
        peer = Peer(run)
        socket.send_fds(peer.socket, [encode(AdminList(""))], [0])
        assert peer.is_closed()
        records = until("the audit", lambda: [one for one in run.audit_records() if one["event"] == "violation"])
        assert len(records) == len(HOSTILE) + 1
        assert {one["child"] for one in records} == {"administrator[0]"}
        assert Peer(run).ask(AdminList(""))[0].count == 0
        assert not manager.is_gone()
        assert not mapper.is_gone()
        assert not (run.root / "restrictions.json").exists()


def test_a_peer_that_floods_or_does_not_read_is_closed() -> None:
    with running_monitor() as (run, _, _mapper):
        peer = Peer(run)
        frame = encode(AdminList(""))
        with contextlib.suppress(OSError):
            peer.socket.settimeout(20)
            for _ in range(100_000):
                peer.socket.send(frame)
        until("it is closed", lambda: "closing the connection" in run.log_text())
        assert Peer(run).ask(AdminList(""))[0].count == 0


def test_stop_answers_after_the_end_and_is_audited(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        ids = [start_as(manager, mapper, alice.name, ref=ref)[0] for ref in (1, 2)]
        peer = Peer(run)
        done, rows = peer.ask(AdminList(""))
        assert [one.uep_id for one in rows if isinstance(one, AdminEndpoint)] == sorted(ids)
        assert done.count == 2
        assert peer.ask(AdminStop(ids[0], "", "go\x1b[31m home"))[0].count == 1
        assert not run.record(ids[0])
        ended = manager.take(EndpointEnded)[0]
        assert (ended.uep_id, ended.code) == (ids[0], "STOPPED")
        assert "go [31m home" in ended.public
        assert peer.ask(AdminStop("", alice.name, ""))[0].count == 1
        assert peer.ask(AdminStop("", alice.name, ""))[0].count == 0
        orders = [one for one in run.audit_records() if one["event"] == "admin"]
        assert [(one["action"], one["by_uid"]) for one in orders] == [("stop", 0)] * 3
        assert orders[0]["stopped"] == [ids[0]]


def test_a_drain_refuses_starts_and_outlives_a_restart(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        peer = Peer(run)
        assert not peer.ask(AdminDrain(0, "", "disks."))[0].problem
        _, answer = start_as(manager, mapper, alice.name)
        assert (answer.outcome, answer.code) == ("unavailable", "ENDPOINT_DRAINING")
        assert answer.public == "This site starts no new processes at the moment: disks. Your tasks wait."
        run.stop(signal.SIGTERM)
        run.start()
        manager, mapper = run.ready()
        peer = Peer(run)
        _, rows = peer.ask(AdminList(""))
        (kept,) = [one for one in rows if isinstance(one, AdminRestriction)]
        assert (kept.kind, kept.local_user, kept.by_uid) == ("drain", "", 0)
        assert start_as(manager, mapper, alice.name, ref=2)[1].code == "ENDPOINT_DRAINING"
        failure = next(one for one in peer.ask(AdminList(""))[1] if isinstance(one, AdminFailure))
        assert failure.local_user == alice.name
        assert peer.ask(AdminDrain(1, alice.name, "yours is closed"))[0].count == 0
        _, answer = start_as(manager, mapper, alice.name, ref=3)
        assert (answer.outcome, answer.code) == ("refused", "ENDPOINT_DRAINING")
        assert "yours is closed. Submit again later." in answer.public
        assert peer.ask(AdminUndrain(alice.name))[0].count == 1
        assert peer.ask(AdminUndrain(""))[0].count == 1
        manager.take(StartsAllowed)
        assert peer.ask(AdminUndrain(""))[0].count == 0
        assert start_as(manager, mapper, alice.name, ref=4)[1].outcome == "started"


def test_every_drain_and_ban_is_shown_in_pages() -> None:
    """Also those of one account, and when the one that a page ended with is taken back."""
    with running_monitor() as (run, _, _mapper):
        peer = Peer(run)
        for number in range(MAX_ADMIN_ROWS):
            assert not peer.ask(AdminDrain(0, f"meptest-{number:03}", ""))[0].problem
            assert not peer.ask(AdminBan(-1, f"meptest-{number:03}", ""))[0].problem
        done, rows = peer.ask(AdminRestrictions("", ""))
        assert (done.count, done.more, len(rows)) == (2 * MAX_ADMIN_ROWS, 1, MAX_ADMIN_ROWS)
        shown = [(one.local_user, one.kind) for one in rows if isinstance(one, AdminRestriction)]
        assert peer.ask(AdminUndrain(shown[-1][0]))[0].count == 1
        assert shown[-1][1] == "drain"
        done, rows = peer.ask(AdminRestrictions(*shown[-1]))
        shown += [(one.local_user, one.kind) for one in rows if isinstance(one, AdminRestriction)]
        assert done.more == 0
        assert shown == [(f"meptest-{at:03}", kind) for at in range(MAX_ADMIN_ROWS) for kind in ("ban", "drain")]


def test_a_user_endpoint_that_cannot_be_drained_is_not_killed(alice: LocalAccount) -> None:
    """SIGUSR2 ends a process that doesn't handle it; one of an older version does not."""
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        assert Peer(run).ask(AdminDrain(0, "", ""))[0].count == 0
        until("it is logged", lambda: "of an older version can't be drained" in run.log_text())
        assert run.record(uep_id)["state"] == "running"


def test_a_ban_reaches_every_name_of_the_uid(alice: LocalAccount) -> None:
    other = create_account(uid=alice.uid, home=False)
    try:
        with running_monitor() as (run, manager, mapper):
            uep_id, _ = start_as(manager, mapper, alice.name)
            peer = Peer(run)
            assert peer.ask(AdminBan(alice.uid, alice.name, "ticket 4711"))[0].count == 1
            revoked = manager.take(EndpointRevoked)[0]
            assert (revoked.uep_id, revoked.code) == (uep_id, "ACCOUNT_BANNED")
            assert manager.take(EndpointEnded)[0].code == "ACCOUNT_BANNED"
            for ref, name in enumerate((alice.name, other.name), 2):
                _, answer = start_as(manager, mapper, name, ref=ref)
                assert (answer.outcome, answer.code) == ("refused", "ACCOUNT_BANNED")
                assert "ticket 4711. Ask them" in answer.public
            record = [one for one in run.audit_records() if one.get("action") == "ban"][-1]
            assert (record["local_user"], record["uid"], record["by_uid"]) == (alice.name, alice.uid, 0)
            done, _ = peer.ask(AdminUnban(alice.name))
            assert done.count == 1
            assert start_as(manager, mapper, other.name, ref=9)[1].outcome == "started"
    finally:
        subprocess.run(["userdel", "--force", other.name], check=False, capture_output=True, timeout=30)


def test_a_reload_is_answered_with_its_outcome(tmp_path: pathlib.Path) -> None:
    resolver = ["/bin/sh", "-c", "exit $(cat $0)", str(tmp_path / "status")]
    (tmp_path / "status").write_text("4")
    with running_monitor(resolver_argv=resolver) as (run, _, _mapper):
        done, _ = Peer(run).ask(AdminReload())
        assert "the resolver ended with exit status 4" in done.problem
    with running_monitor() as (run, _, _mapper):  # without a resolver
        assert Peer(run).ask(AdminReload())[0].problem


def test_the_log_comes_as_a_descriptor_that_only_reads(tmp_path: pathlib.Path) -> None:
    log = pathlib.Path("/var/log") / f"meptest-{secrets.token_hex(4)}.log"
    try:
        with running_monitor(log_path=str(log)) as (run, _, _mapper):
            peer = Peer(run)
            peer.channel.send(AdminLog())
            received = peer.channel.receive()
            assert received is not None
            (descriptor,) = received[1]
            assert b"started" in os.pread(descriptor, 65536, 0)
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(descriptor, b"x")
            os.close(descriptor)
    finally:
        log.unlink(missing_ok=True)


def test_a_peer_that_does_not_read_uses_up_no_descriptors() -> None:
    """Otherwise a member could stop all starts unrecorded: the monitor takes no requests without free descriptors."""
    log = pathlib.Path("/var/log") / f"meptest-{secrets.token_hex(4)}.log"
    try:
        with running_monitor(log_path=str(log)) as (run, _, _mapper):
            descriptors = pathlib.Path(f"/proc/{run.pid}/fd")
            peer = Peer(run)
            with contextlib.suppress(OSError):
                for _ in range(900):
                    peer.socket.send(encode(AdminLog()))
            until("the last is answered or refused", lambda: _logs_read(run) == 900 or _violations(run))
            assert len(list(descriptors.iterdir())) < 100
            assert _violations(run)
            assert Peer(run).ask(AdminList(""))[0].count == 0
    finally:
        log.unlink(missing_ok=True)


def _logs_read(run: MonitorRun) -> int:
    return sum(one.get("action") == "read log" for one in run.audit_records())


def _violations(run: MonitorRun) -> int:
    return sum(one["event"] == "violation" for one in run.audit_records())


_FLOOD = """
import os, socket, sys
def connect():
    one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.connect(sys.argv[1])
    return one
one = connect()
for frame in map(bytes.fromhex, sys.argv[2:]):
    one.send(frame)
    said = one.recv(65536)
for _ in range(100):
    bad = connect()
    bad.send(b"\\xff")
    bad.recv(1)
    bad.close()
print(said.hex())
"""


def test_members_cannot_fill_the_disk_with_records(group: tuple[int, LocalAccount]) -> None:
    gid, member = group
    orders = [encode(one).hex() for _ in range(20) for one in (AdminDrain(0, "", "x" * 512), AdminUndrain(""))]
    with running_monitor(admin_gid=gid, log_bytes_a_day=16_000) as (run, manager, _mapper):
        done = subprocess.run(
            [sys.executable, "-I", "-c", _FLOOD, str(run.run / "admin" / "socket"), *orders],
            user=member.uid, group=member.gid, extra_groups=[gid], capture_output=True, text=True, timeout=60,
            check=True, cwd="/",
        )  # fmt: skip
        assert b"too many orders today" in bytes.fromhex(done.stdout)
        records = run.audit_records()
        assert 0 < sum(one["event"] == "admin" for one in records) < 40
        assert _violations(run) < 100
        assert sum(one["event"] == "log_budget_used_up" for one in records) == 1
        assert not Peer(run).ask(AdminDrain(0, "", ""))[0].problem, "root may still"
        assert run.audit_records()[-1]["action"] == "drain"
        assert not manager.is_gone()


def test_a_peer_that_sends_much_takes_turns_with_others() -> None:
    with running_monitor() as (run, _, _mapper):
        busy = Peer(run)
        busy.ask(AdminList(""))
        os.kill(run.pid, signal.SIGSTOP)
        for _ in range(30):
            busy.channel.send(AdminUndrain("busy"))
        other = Peer(run)
        other.channel.send(AdminUndrain("other"))
        os.kill(run.pid, signal.SIGCONT)
        other.rest()
        for _ in range(30):
            busy.rest()
        order = [one["local_user"] for one in run.audit_records() if one["event"] == "admin"]
        assert sorted(order) == ["busy"] * 30 + ["other"]
        assert order.index("other") < 10


def test_figures_are_read_through_the_keeper(alice: LocalAccount) -> None:
    with running_monitor() as (run, manager, mapper):
        uep_id, _ = start_as(manager, mapper, alice.name)
        page = pathlib.Path(f"/proc/{run.record(uep_id)['uep_pid']}/fd/7")
        told = figures.Figures(1.0, 2, 3, 4, 5, "{}", "0 job 1 running", "", "\x1b[31mfailure", "/log")
        hostile = [b"\xff" * 4096, b"", b"MEPFIG01", os.urandom(4096), figures.encode(told, 7)]
        for written in hostile:
            with page.open("r+b", buffering=0) as file:
                file.write(written.ljust(4096, b"\0"))
            row = next(one for one in Peer(run).ask(AdminList(""))[1] if isinstance(one, AdminEndpoint))
            assert len(row.figures) == 4096
        assert figures.decode(row.figures) == told
        with page.open("r+b", buffering=0) as file, pytest.raises(PermissionError):
            file.truncate(1 << 30)


@pytest.mark.parametrize("page", [b"", b"\0" * 4096, b"\xff" * 4096, b"MEPFIG01" + b"\1" * 2000 + b"\2" * 2088])
def test_a_page_that_is_none(page: bytes) -> None:
    assert figures.decode(page) is None


def test_long_texts_of_a_page_are_cut() -> None:
    told = figures.Figures(values="ü" * 5000, log_path="/" + "x" * 5000)
    found = figures.decode(figures.encode(told, 1))
    assert found is not None
    assert len(found.values.encode()) <= 1024
    assert found.values.endswith("…")


def test_restrictions_that_are_damaged_or_not_roots_are_refused(alice: LocalAccount, tmp_path: pathlib.Path) -> None:
    state = pathlib.Path("/var/lib") / f"meptest-{secrets.token_hex(4)}"
    state.mkdir(mode=0o755)
    try:
        known = Restrictions(str(state))
        known.put(RestrictionKind.BAN, "alice", uid=5, message="x", refuse=True, by_uid=0)
        file = state / "restrictions.json"
        assert file.stat().st_mode & 0o777 == 0o600
        assert Restrictions(str(state)).ban_of("other", 5) is not None
        for bad in ("{", "[]", '{"restrictions": [{}]}', file.read_text().replace('"ban"', '"none"')):
            (state / "restrictions.json").write_text(bad)
            with pytest.raises(ConfigRefused):
                Restrictions(str(state))
        os.chown(file, alice.uid, alice.gid)
        with pytest.raises(PermissionError):
            Restrictions(str(state))
    finally:
        for one in state.iterdir():
            one.unlink()
        state.rmdir()
