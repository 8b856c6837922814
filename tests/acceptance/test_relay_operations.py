"""Operating a relay: configuration, TLS, drain, its end, and the commands for endpoints, tasks, queues and storage."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import ssl
import stat
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.fake_peer import FakeManager
from tests.support.login import free_port
from tests.support.relay import RelayProcess
from tests.support.relay_client import Person
from tests.support.slapd import Authority
from tests.support.waiting import until


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as running:
        yield running


def configure(relay: RelayProcess, text: str) -> None:
    relay.state.mkdir(mode=0o700, exist_ok=True)
    path = relay.state / "mep-relay.toml"
    path.write_text(text)
    path.chmod(0o600)


# --- configuration ----------------------------------------------------------------------------------


def test_a_wrong_configuration_stops_the_start_and_every_command_with_file_key_and_reason(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    configure(relay, "max_batch = 0\n")
    for words in (("config",), ("serve",), ("user", "add", "alice")):
        done = relay.cli(*words, check=False)
        assert done.returncode == 1
        assert f"{relay.state}/mep-relay.toml: max_batch: Expected `int` >= 1" in done.stderr
    assert not (relay.state / "relay.db").exists()


def test_the_file_is_used_and_shown(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    configure(relay, "max_batch = 2\nlog_format = 'json'\n")
    shown = json.loads(relay.cli("config", "--json").stdout)
    assert (shown["max_batch"], shown["host"]) == (2, "127.0.0.1")
    with relay:
        alice = Person(relay)
        lab = FakeManager(relay, alice.token)
        path = f"/v3/endpoints/{lab.endpoint_id}/submit"
        assert "1 to 2 tasks" in alice.refused(422, "BODY_INVALID", "POST", path, {"tasks": {"f": ["x"] * 3}})
        assert json.loads(relay.log.read_text().splitlines()[0])["program"] == "mep-relay"


def test_the_first_run_makes_keys_and_a_socket_that_nobody_else_can_use(relay: RelayProcess) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in relay.state.iterdir()}
    assert stat.S_IMODE(relay.state.stat().st_mode) == 0o700
    assert {"link.key", "signing.key", "relay.db", "control.sock"} <= set(modes)
    assert set(modes.values()) == {0o600}


# --- TLS --------------------------------------------------------------------------------------------


def served_certificate(relay: RelayProcess, authority: Authority) -> bytes:
    context = ssl.create_default_context(cafile=str(authority.file))
    parts = urlsplit(relay.url)
    with _connect(parts.hostname or "", parts.port or 0, context) as tls:
        return tls.getpeercert(binary_form=True) or b""


def _connect(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection((host, port), 60), server_hostname=host)


def test_it_serves_https_and_reads_its_certificate_again_on_hup(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    relay = RelayProcess(tmp_path)
    chain, key = tmp_path / "relay.crt", tmp_path / "relay.pem"

    def put(name: str) -> None:
        certificate, secret = authority.issue(name, hosts=("127.0.0.1",))
        for new, old in ((certificate, chain), (secret, key)):
            fresh = old.with_suffix(".new")
            fresh.write_bytes(new.read_bytes())
            fresh.chmod(0o600)
            fresh.replace(old)

    put("first")
    configure(relay, f"tls_certificate = '{chain}'\ntls_key = '{key}'\n")
    with relay:
        assert relay.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(authority.file))
        with urllib.request.urlopen(f"{relay.url}/healthz", context=context, timeout=60) as answer:
            assert json.loads(answer.read()) == {"status": "ok"}
        first = served_certificate(relay, authority)
        put("second")
        os.kill(relay.pid, signal.SIGHUP)
        until("the other certificate", lambda: served_certificate(relay, authority) != first)
        second = served_certificate(relay, authority)
        key.write_text("nonsense")
        os.kill(relay.pid, signal.SIGHUP)
        until("the refusal", lambda: "the certificate stays as it was" in relay.log.read_text())
        assert served_certificate(relay, authority) == second
        plain = urllib.request.Request(f"http://127.0.0.1:{urlsplit(relay.url).port}/healthz")
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(plain, timeout=60)


def test_a_key_that_others_may_read_stops_the_start(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue("relay", hosts=("127.0.0.1",))
    key.chmod(0o644)
    relay = RelayProcess(tmp_path)
    configure(relay, f"tls_certificate = '{certificate}'\ntls_key = '{key}'\n")
    done = relay.cli("serve", check=False)
    assert done.returncode == 1
    assert f"tls_key: {key}" in done.stderr


# --- drain and end ----------------------------------------------------------------------------------


def test_a_drained_relay_takes_no_new_tasks_and_goes_on_with_the_others(relay: RelayProcess) -> None:
    alice = Person(relay)
    lab = FakeManager(relay, alice.token).hello()
    function = alice.function()
    answer = alice.submit(lab.endpoint_id, function, ["x"])
    assert "0 tasks run, 0 were sent and have not begun, 1 wait." in relay.cli("drain").stdout
    path, body = f"/v3/endpoints/{lab.endpoint_id}/submit", {"tasks": {function: ["x"]}}
    assert "drains" in alice.refused(503, "RELAY_UNAVAILABLE", "POST", path, body)
    assert relay.request("GET", "/readyz")[0] == 503
    assert relay.request("GET", "/healthz")[0] == 200
    uep = lab.start()
    uep.credit(1)
    tasks = uep.take(1)
    counts = {"running": 0, "dispatched": 1, "queued": 0}
    assert json.loads(relay.cli("drain", "--json").stdout)["tasks"] == counts
    uep.finish(tasks)
    assert alice.task(answer["tasks"][function][0])["status"] == "success"
    relay.cli("drain", "--off")
    alice.ok("POST", path, body)
    assert relay.request("GET", "/readyz")[0] == 200


def asked(port: int, path: str, **headers: str) -> tuple[int, str]:
    """Ask the port for a monitoring system; return status and text."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_monitoring_system_of_the_host_has_a_port_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    with RelayProcess(tmp_path, "--metrics-port", str(port)) as relay:
        status, text = asked(port, "/metrics")
        assert status == 200
        assert "\nmep_relay_store_commits_total " in text
        assert asked(port, "/readyz") == (200, "ok\n")
        assert asked(port, "/v2/version")[0] == 404
        relay.cli("drain")
        status, text = asked(port, "/readyz")
        assert status == 503
        assert "it is being drained" in text
        status, answer = relay.request("GET", "/readyz")
        assert (status, answer["code"]) == (503, "RELAY_UNAVAILABLE")
        assert "drained" not in answer["reason"]
        until("the reason in the log", lambda: "it is being drained" in relay.log.read_text())


def test_the_port_for_a_monitoring_system_holds_nothing_for_long(tmp_path: Path) -> None:
    """Any account of the host can connect: a few clients that say nothing are held, and then no more of them."""
    port = free_port()
    with RelayProcess(tmp_path, "--metrics-port", str(port)):
        silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(40)]
        with contextlib.suppress(ConnectionError):
            silent[-1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert silent[-1].recv(100) == b""
        for one in silent:
            with contextlib.suppress(ConnectionError):
                assert one.recv(100) == b""
            one.close()
        assert asked(port, "/metrics")[0] == 200
        with socket.create_connection(("127.0.0.1", port), timeout=60) as long, contextlib.suppress(ConnectionError):
            long.sendall(b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 100_000)
            assert long.recv(100) == b""


def test_a_proxy_that_is_not_named_is_said(relay: RelayProcess) -> None:
    status, _ = relay_asked(relay, "/device")
    assert status == 200
    assert "is not in trusted_proxies" not in relay.log.read_text()
    relay_asked(relay, "/device", **{"x-forwarded-for": "192.0.2.7"})
    until("the word in the log", lambda: "is not in trusted_proxies" in relay.log.read_text())


def relay_asked(relay: RelayProcess, path: str, **headers: str) -> tuple[int, str]:
    """Ask the relay's own port."""
    return asked(int(relay.url.rpartition(":")[2]), path, **headers)


def test_a_request_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path, "--drain-s", "60").start()
    alice = Person(relay)
    lab = FakeManager(relay, alice.token)
    function = alice.function()
    other = sqlite3.connect(relay.state / "relay.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(alice.submit(lab.endpoint_id, function, ["x"])))
    thread.start()
    try:
        until("the change that waits", lambda: "another process holds the database's lock" in relay.log.read_text())
        os.kill(relay.pid, signal.SIGTERM)
        parts = urlsplit(relay.url)
        until("no listener", lambda: _refuses(parts.port or 0))
        assert not answers
    finally:
        other.execute("ROLLBACK")
        other.close()
    thread.join(60)
    assert relay.stop() == 0
    (task_id,) = answers[0]["tasks"][function]
    relay.start()
    assert alice.task(task_id)["status"] in ("pending", "waiting-for-nodes", "waiting-for-ep")
    relay.stop()


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_commands_for_a_server_say_that_there_is_none(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path)
    relay.add_user("alice")
    for words in (("drain",), ("task", "cancel", "01977f5e-0000-7000-8000-000000000000")):
        done = relay.cli(*words, check=False)
        assert (done.returncode, "no relay serves this state directory" in done.stderr) == (1, True)


class TalkativeRelay(RelayProcess):
    """A relay with commands that say at each step how far they are."""

    def _command(self, *words: str) -> list[str]:
        *python, code = super()._command()[:4]
        patch = "import relay.cli_common as c; c.PROGRESS_S = 0.0;"
        return [*python, f"{patch} {code}", *words, "--state", str(self.state)]


def test_long_work_shows_how_far_it_is(tmp_path: Path) -> None:
    relay, talkative = RelayProcess(tmp_path), TalkativeRelay(tmp_path)
    relay.add_user("alice")
    chunks = relay.state / "data" / "a"
    chunks.mkdir(mode=0o700, parents=True)
    for number in range(3):
        (chunks / f"{number:064x}.{number:016x}").write_bytes(b"chunk")
    saved = str(tmp_path / "saved")
    assert not relay.cli("db", "backup", saved).stderr  # it is done in no time
    lines = talkative.cli("db", "restore", saved, "--replace").stderr.splitlines()
    assert "chunks copied: 3 of 3" in lines
    assert [line for line in lines if line.startswith("database: bytes copied: ")]
    assert [line for line in lines if line.startswith("bytes checked: ")]
    assert "files on the disk: " in talkative.cli("db", "backup", str(tmp_path / "other")).stderr

    ours, theirs = os.openpty()
    command = relay._command("db", "backup", str(tmp_path / "again"))
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of what a terminal has
        while data := os.read(ours, 65536):
            shown += data
    os.close(ours)
    assert b"chunks copied" in shown
    assert b"100%" in shown


# --- endpoints, tasks, queues, storage --------------------------------------------------------------


def test_tasks_queues_and_storage_are_shown_and_tasks_cancelled(relay: RelayProcess) -> None:
    alice = Person(relay)
    lab = FakeManager(relay, alice.token)
    function = alice.function()
    ids = alice.submit(lab.endpoint_id, function, ["x" * 1000] * 3)["tasks"][function]
    listed = json.loads(relay.cli("task", "list", "--user", alice.username, "--json").stdout)
    assert [one["id"] for one in listed] == ids[::-1]
    assert {one["state"] for one in listed} == {"QUEUED"}
    (queued,) = [one for one in json.loads(relay.cli("queue", "--json").stdout) if one["owner"] == alice.username]
    assert (queued["queued"], queued["endpoint"]) == (3, lab.endpoint_id)
    (stored,) = [one for one in json.loads(relay.cli("storage", "--json").stdout) if one["owner"] == alice.username]
    assert stored["bytes"] >= 3000
    told = json.loads(relay.cli("task", "cancel", *ids[:2], "--json").stdout)
    assert told == {"cancelled": 2, "asked": 0, "ended": 0, "unknown": 0}
    wrong = relay.cli("task", "cancel", "01977f5e-0000-7000-8000-000000000000", check=False)
    assert (wrong.returncode, "1 not known here" in wrong.stdout) == (1, True)
    assert alice.task(ids[0])["code"] == "TASK_CANCELLED"
    assert relay.cli("task", "list", "--user", alice.username).stdout.count("\n") == 1
    everything = relay.cli("task", "list", "--user", alice.username, "--endpoint", lab.endpoint_id, "--all").stdout
    assert (everything.count("CANCELLED"), everything.count("QUEUED")) == (2, 1)
    assert relay.cli("task", "cancel", "no-uuid", check=False).returncode == 2


def test_an_endpoint_is_removed_whoever_owns_it_beside_a_server_and_without_one(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path).start()
    alice = Person(relay)
    labs = [FakeManager(relay, alice.token) for _ in range(2)]
    function = alice.function()
    ids = [alice.submit(lab.endpoint_id, function, ["x"])["tasks"][function][0] for lab in labs]
    for number, lab in enumerate(labs):
        alice.ok("PUT", f"/v3/endpoints/{lab.endpoint_id}/access", {"alias": f"lab-{number}"})
    relay.cli("endpoint", "remove", labs[0].endpoint_id.upper())
    until("the waiting task's end", lambda: alice.task(ids[0]).get("code") == "ENDPOINT_DELETED")
    assert alice.task(ids[1])["code"] == "ENDPOINT_OFFLINE"  # why it waits
    relay.stop()
    relay.cli("endpoint", "remove", labs[1].endpoint_id)
    relay.start()
    until("the waiting task's end", lambda: alice.task(ids[1]).get("code") == "ENDPOINT_DELETED")
    done = relay.cli("endpoint", "remove", labs[1].endpoint_id, check=False)
    assert (done.returncode, "there is no endpoint" in done.stderr) == (1, True)
    for number in range(2):  # the names are free
        endpoint = FakeManager(relay, alice.token).endpoint_id
        alice.ok("PUT", f"/v3/endpoints/{endpoint}/access", {"alias": f"lab-{number}"})
    relay.stop()


@pytest.mark.root
def test_what_cannot_be_is_said_before_anything_is_done(relay: RelayProcess, tmp_path: Path) -> None:
    alice = Person(relay)
    lab = FakeManager(relay, alice.token)
    wrong = {
        ("task", "list", "--endpoint", lab.endpoint_id.replace("-", "")): "there is no endpoint",
        ("db", "backup", str(tmp_path / "none" / "new")): f"there is no directory {tmp_path / 'none'}",
        ("db", "backup", str(tmp_path)): "exists already",
    }
    for words, text in wrong.items():
        done = relay.cli(*words, check=False)
        assert (done.returncode, text in done.stderr) == (1, True), done.stderr
    assert relay.cli("task", "list", "--endpoint", lab.endpoint_id.upper()).returncode == 0
    assert json.loads(relay.cli("db", "upgrade", "--json").stdout)["schema"] > 0
    removed = json.loads(relay.cli("endpoint", "remove", lab.endpoint_id, "--json").stdout)
    assert removed == {"removed": lab.endpoint_id}


def test_the_control_socket_is_closed_to_other_accounts(relay: RelayProcess) -> None:
    code = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])"
    done = subprocess.run(
        ["python3", "-I", "-c", code, relay.state / "control.sock"], capture_output=True, text=True, user="nobody"
    )
    assert "PermissionError" in done.stderr


def test_nonsense_on_the_control_socket_is_refused(relay: RelayProcess) -> None:
    for line in (b"\n", b"{}\n", b'{"what": "fly"}\n', b'{"what": "cancel", "ids": ["x"]}\n', b"[" * 70_000 + b"\n"):
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(str(relay.state / "control.sock"))
            one.sendall(line)
            with one.makefile("rb") as file:
                assert "error" in json.loads(file.readline())
    assert json.loads(relay.cli("drain", "--off", "--json").stdout)["draining"] is False
