"""The command `mep-sdk` against a real relay: logins, their profiles, and what a client does with them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mep_sdk import Client, Executor, profiles
from mep_sdk.authorization_server import AuthorizationServer
from mep_sdk.errors import EndpointAmbiguous, LoginOver
from mep_wire.errors import EndpointNotFound
from tests.support.browser import Browser
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.login import people_file
from tests.support.oidc import HostileProvider
from tests.support.relay import RelayProcess
from tests.support.waiting import until

TOOL = str(Path(sys.executable).with_name("mep-sdk"))
SETTINGS = ("MEP_TOKEN", "MEP_RELAY_URL", "MEP_PROFILE", "MEP_CLIENT_ID", "MEP_CLIENT_SECRET")


@pytest.fixture(scope="module")
def provider() -> Iterator[HostileProvider]:
    with HostileProvider() as running:
        running.claims = {"sub": "alice-1", "preferred_username": "alice@example.edu", "name": "Alice"}
        yield running


@pytest.fixture(scope="module")
def relay(provider: HostileProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    trusting = {"name": "campus", "issuer": provider.issuer, "client_id": "relay-login", "audience": "relay"}
    settings = people_file(directory, providers=[trusting], administrators=["root@example.edu"])
    with RelayProcess(directory, "--people", str(settings)) as running:
        yield running


@dataclass
class Shell:
    """A person's terminal, with a home of its own."""

    home: Path
    relay: RelayProcess
    variables: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
        return {**kept, "HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config"), **self.variables}

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([TOOL, *words], env=self.environment, capture_output=True, text=True, timeout=90)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([TOOL, *words], env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def log_in(self, *words: str) -> str:
        """Log in with a device code, as a person does who has a browser elsewhere; return the output."""
        tool = self.start("login", self.relay.url, "--device", *words)
        assert tool.stderr is not None
        line = tool.stderr.readline()
        found = re.search(r"code: (\S+)", line)
        assert found, line
        browser = Browser()
        page = browser.get(f"{self.relay.url}/device?user_code={found[1]}")
        page = browser.follow(browser.submit(page))
        assert browser.submit(page, decision="yes").status == 200
        out, error = tool.communicate(timeout=90)
        assert tool.returncode == 0, error
        return out

    def stored(self, name: str = "default") -> Path:
        return self.home / "config" / "mep" / "profiles" / f"{name}.json"


@pytest.fixture
def shell(relay: RelayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    made = Shell(tmp_path, relay, {})
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return made


def age(name: str = "default") -> profiles.Profile:
    """Let a stored token be at its end, as after an hour."""
    with profiles.locked(name):
        stored = profiles.get_profile(name)
        stored.expires_at = time.time() + 1.0
        profiles.save_profile(name, stored)
    return stored


# --- logging in and out -----------------------------------------------------------------------------


def test_a_login_with_a_device_code_is_stored_for_its_owner_alone(shell: Shell) -> None:
    out = shell.log_in()
    assert "as alice@example.edu: profile default" in out
    assert stat.S_IMODE(shell.stored().stat().st_mode) == 0o600
    assert stat.S_IMODE(shell.stored().parent.stat().st_mode) == 0o700
    assert shell.json("whoami")["preferred_username"] == "alice@example.edu"
    token = profiles.get_profile("default").access_token
    assert token not in out
    shell.run("logout")
    assert not shell.stored().exists()
    until("the end of the token", lambda: shell.relay.request("GET", "/v3/tokens", token)[0] == 401)
    assert "mep-sdk login" in shell.run("whoami", status=1).stderr


def test_a_login_with_a_browser(shell: Shell) -> None:
    tool = shell.start("login", shell.relay.url, "--browser", "--json")
    assert tool.stderr is not None
    tool.stderr.readline()
    address = tool.stderr.readline().strip()
    browser = Browser()
    page = browser.submit(browser.follow(browser.get(address)), decision="yes")
    assert browser.get(page.location.replace("state=", "state=x")).status == 404
    assert "close this page" in browser.get(page.location).text
    out, error = tool.communicate(timeout=90)
    assert tool.returncode == 0, error
    assert json.loads(out)["username"] == "alice@example.edu"


def test_a_refusal_in_the_browser_ends_the_command(shell: Shell) -> None:
    tool = shell.start("login", shell.relay.url, "--browser")
    assert tool.stderr is not None
    tool.stderr.readline()
    browser = Browser()
    page = browser.submit(browser.follow(browser.get(tool.stderr.readline().strip())), decision="no")
    browser.get(page.location)
    error = tool.communicate(timeout=90)[1]
    assert (tool.returncode, "did not succeed: The person said no." in error) == (1, True), error


# --- what a client does with a login ----------------------------------------------------------------


REFRESH = """
import sys
from mep_sdk import Client
client = Client()
sys.stdin.readline()
print(client.get_endpoints(), client.settings.bearer())
"""


def test_processes_that_share_a_login_refresh_it_once(shell: Shell) -> None:
    shell.log_in()
    before = age()
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", REFRESH]
    scripts = [subprocess.Popen(command, env=shell.environment, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    told = [script.communicate("\n", timeout=90)[0].split()[-1] for script in scripts]
    assert set(told) == {profiles.get_profile("default").access_token}
    assert before.access_token not in told
    assert [script.returncode for script in scripts] == [0] * 4


def test_a_token_that_the_relay_no_longer_knows_is_renewed(shell: Shell) -> None:
    shell.log_in("--scope", "submit read manage_tokens")
    client, old = Client(), profiles.get_profile("default").access_token
    shell.relay.request("DELETE", f"/v3/tokens/{shell.json('whoami')['mep']['token_id']}", old)
    until("the end of the token", lambda: shell.relay.request("GET", "/v3/tokens", old)[0] == 401)
    assert client.get_endpoints() == []
    assert client.settings.bearer() != old


def test_a_login_that_the_relay_ended_says_how_to_begin_again(shell: Shell) -> None:
    shell.log_in()
    client, stored = Client(), profiles.get_profile("default")
    AuthorizationServer(stored.relay_url).revoke(stored.refresh_token)
    until("the end of the token", lambda: shell.relay.request("GET", "/v3/tokens", stored.access_token)[0] == 401)
    with pytest.raises(LoginOver, match="mep-sdk login --profile default"):
        client.get_endpoints()


def test_a_client_that_logs_out_ends_the_login(shell: Shell) -> None:
    shell.log_in()
    client, token = Client(), profiles.get_profile("default").access_token
    client.logout()
    assert not shell.stored().exists()
    until("the end of the token", lambda: shell.relay.request("GET", "/v3/tokens", token)[0] == 401)


def test_a_given_token_wins(shell: Shell) -> None:
    shell.log_in()
    shell.variables = {"MEP_TOKEN": shell.relay.add_user("token@example.edu")}
    assert shell.json("whoami")["preferred_username"] == "token@example.edu"


def test_a_service_has_its_credentials_in_the_environment(shell: Shell, provider: HostileProvider) -> None:
    provider.claims = {"sub": "root-1", "preferred_username": "root@example.edu"}
    try:
        shell.log_in("--scope", "submit read admin")
    finally:
        provider.claims = {"sub": "alice-1", "preferred_username": "alice@example.edu", "name": "Alice"}
    root = profiles.get_profile("default").access_token
    made = shell.relay.request("POST", "/v3/clients", root, {"name": "nightly", "scopes": ["submit", "read"]})[1]
    shell.variables = {"MEP_CLIENT_ID": made["client_id"], "MEP_CLIENT_SECRET": made["client_secret"]}
    assert shell.json("whoami")["mep"]["kind"] == "service"
    shell.variables["MEP_CLIENT_SECRET"] = "wrong"
    assert "did not succeed" in shell.run("whoami", status=1).stderr


def test_several_logins_have_profiles(shell: Shell) -> None:
    shell.log_in("--profile", "first")
    shell.log_in("--profile", "second")
    assert [(one["profile"], one["default"]) for one in shell.json("profiles")] == [("first", True), ("second", False)]
    shell.run("profiles", "--use", "second")
    assert [one["default"] for one in shell.json("profiles")] == [False, True]
    lines = shell.run("profiles").stdout.splitlines()
    assert lines[0].split("\t")[:2] == ["first", shell.relay.url]
    assert "known: first, second" in shell.run("whoami", "--profile", "third", status=1).stderr
    shell.run("logout", "--all")
    assert shell.json("profiles") == []


def test_a_login_that_others_can_read_is_refused(shell: Shell) -> None:
    shell.log_in()
    shell.stored().chmod(0o644)
    assert "chmod 600" in shell.run("whoami", status=1).stderr


# --- endpoints and tasks ----------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "nodes": {"type": "integer", "minimum": 2, "description": "How many nodes"},
        "queue": {"enum": ["short", "long"]},
    },
    "required": ["nodes"],
}


@pytest.fixture(scope="module")
def ada(relay: RelayProcess) -> str:
    return relay.add_user("ada@example.edu")


@pytest.fixture(scope="module")
def endpoint(relay: RelayProcess, ada: str) -> Iterator[FakeEndpoint]:
    body = {"endpoint_name": "cluster", "display_name": "The Cluster", "user_config_schema": SCHEMA}
    with FakeEndpoint(relay, ada, **body) as running:
        yield running


@pytest.fixture(scope="module")
def idle(relay: RelayProcess, ada: str) -> str:
    """An endpoint without a running manager: tasks for it wait."""
    return FakeEndpoint(relay, ada, serve=False, endpoint_name="idle").endpoint_id


@pytest.fixture
def own(shell: Shell, ada: str) -> Shell:
    shell.variables = {"MEP_RELAY_URL": shell.relay.url, "MEP_TOKEN": ada}
    return shell


NODES = ("--config", '{"nodes": 2}')


def test_a_function_runs_at_an_endpoint_by_its_name(own: Shell, endpoint: FakeEndpoint) -> None:
    assert own.run("run", "ada@example.edu/cluster", "math:pow", "2", "10", *NODES).stdout == "1024.0\n"
    assert own.json("run", "The Cluster", "builtins:sorted", "[3, 1]", *NODES) == {"result": [1, 3]}
    told = own.json("run", "cluster", "json:dumps", '{"b": 1}', "-k", "indent=0", *NODES)
    assert told == {"result": json.dumps({"b": 1}, indent=0)}


def test_a_function_of_the_person_s_own_file_runs(own: Shell, endpoint: FakeEndpoint) -> None:
    (own.home / "mine.py").write_text("def double(value):\n    return value * 2\n")
    command = [TOOL, "run", "cluster", "mine:double", "21", *NODES]
    done = subprocess.run(command, env=own.environment, cwd=own.home, capture_output=True, text=True, timeout=90)
    assert done.stdout == "42\n", done.stderr


def test_a_failed_task_ends_the_command_with_its_error(own: Shell, endpoint: FakeEndpoint) -> None:
    done = own.run("run", "cluster", "math:sqrt", "-k", "x=1", *NODES, status=1)
    assert done.stderr.count("TypeError") == 1
    assert "user_endpoint_config" in own.run("run", "cluster", "math:sqrt", "4", status=1).stderr
    assert "expected MODULE:FUNC" in own.run("run", "cluster", "sqrt", status=1).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("cancel", "results"),
        ("result", "x"),
        ("result", "--group", "x"),
        ("cancel",),
        ("tasks", "--since", "soon"),
        ("tasks", "--state", "flying"),
        ("tasks", "--limit", "0"),
        ("groups", "--limit", "-1"),
        ("describe", "nowhere"),
        ("run", "nowhere", "math:sqrt", "4"),
        ("run", "cluster", "math:sqrt", "4", "--config", "[1]"),
        ("run", "cluster", "math:sqrt", "4", "-k", "x"),
        ("run", "cluster", "math:no_such", "4"),
        ("run", "cluster", "math:sqrt", "4", "--timeout", "-1", "--config", '{"nodes": 2}'),
        ("describe", "cluster", "--packages", "--config", "x"),
        ("profiles", "--use", "nobody"),
        ("whoami", "--profile", "no such"),
        ("endpoints", "--relay-url", "nonsense"),
        ("diagnostic", "--out", "/proc/no/such/file"),
    ],
)
def test_a_mistake_is_told_in_a_line_or_two(own: Shell, endpoint: FakeEndpoint, words: tuple[str, ...]) -> None:
    done = subprocess.run([TOOL, *words], env=own.environment, capture_output=True, text=True, timeout=90)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    assert 0 < len(done.stderr.strip().splitlines()) <= 5, done.stderr


def test_an_endpoint_is_described_with_an_example(own: Shell, endpoint: FakeEndpoint, idle: str) -> None:
    told = own.json("describe", "cluster")
    assert (told["status"], told["example_config"]) == ("online", {"nodes": 2, "queue": "short"})
    text = own.run("describe", "cluster").stdout
    assert "nodes\tinteger\tyes\t\tminimum 2\tHow many nodes\n" in text
    assert f"Executor('{endpoint.endpoint_id}', user_endpoint_config={{'nodes': 2, 'queue': 'short'}})" in text
    assert own.json("describe", idle)["status"] == "offline"
    listed = own.run("endpoints", "--mine").stdout.splitlines()
    assert {endpoint.endpoint_id, idle} <= {line.split("\t")[0] for line in listed}


def test_a_diagnosis_has_the_journey_of_its_task_and_no_token(own: Shell, ada: str) -> None:
    with FakeEndpoint(own.relay, ada, endpoint_name="plain") as plain:
        report = own.json("diagnostic", "--endpoint", plain.endpoint_id)
    assert report["sample task"]["ok"], report
    log = "\n".join(report["log"])
    assert "is at the relay, as a call of" in log
    assert "has succeeded" in log
    assert ada not in json.dumps(report)


def test_an_endpoint_is_described_with_its_workers(own: Shell, endpoint: FakeEndpoint) -> None:
    told = own.json("describe", "cluster", "--packages", *NODES)
    assert told["workers"]["python"] == platform.python_version()
    assert told["workers"]["packages"]["msgspec"] == importlib.metadata.version("msgspec")
    assert [key["key"] for key in told["config_keys"]] == ["nodes", "queue"]
    text = own.run("describe", "cluster", "--packages", *NODES).stdout
    assert f"msgspec\t{importlib.metadata.version('msgspec')}\n" in text
    assert "--packages asks a worker" in own.run("describe", "cluster").stdout
    assert "user_endpoint_config" in own.run("describe", "cluster", "--packages", status=1).stderr


def test_run_says_where_the_task_is_and_prints_its_output(own: Shell, endpoint: FakeEndpoint, idle: str) -> None:
    (own.home / "mine.py").write_text("def speak():\n    print('so far')\n    return 3\n")
    command = [TOOL, "run", "cluster", "mine:speak", "--stream", *NODES]
    done = subprocess.run(command, env=own.environment, cwd=own.home, capture_output=True, text=True, timeout=90)
    assert (done.stdout, done.stderr) == ("so far\n3\n", "")
    told = own.run("run", "idle", "math:sqrt", "4", "--progress", "--timeout", "6", status=2).stderr
    assert re.search(r"\[\d+ s\] task \S+ is (at the relay|on its way to the relay)", told), told
    quiet = own.run("run", "idle", "math:sqrt", "4", "--quiet", "--timeout", "1", status=2).stderr
    assert quiet.startswith("Task ")
    own.run("cancel", *(text.rsplit(" ", 1)[1].strip() for text in (told, quiet)))


def test_a_shell_completes_words_and_endpoints(own: Shell, endpoint: FakeEndpoint, idle: str) -> None:
    (own.home / "bin").mkdir()
    (own.home / "bin" / "mep-sdk").symlink_to(TOOL)
    own.variables["PATH"] = f"{own.home}/bin:{os.environ['PATH']}"
    script = own.run("completion", "bash").stdout

    def bash(*words: str) -> list[str]:
        ask = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _mep_sdk"
        text = f"{script}\n{ask}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", text], env=own.environment, capture_output=True, text=True, timeout=90)
        assert not done.stderr
        return done.stdout.split()

    assert bash("mep-sdk", "de") == ["describe"]
    assert bash("mep-sdk", "describe", "clu") == ["cluster"]
    assert idle in bash("mep-sdk", "run", "")
    assert bash("mep-sdk", "run", "--config", "{}", "i") == ["idle"]
    assert bash("mep-sdk", "run", "cluster", "") == []
    assert bash("mep-sdk", "describe", "--pac") == ["--packages"]
    assert bash("mep-sdk", "completion", "") == ["bash", "fish", "zsh"]
    assert "running" in bash("mep-sdk", "tasks", "--state", "")


def test_completion_does_not_wait_for_a_relay_that_is_silent(own: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        own.variables |= {"MEP_RELAY_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "MEP_SDK_COMPLETE": "1"}
        assert own.run("describe", "").stdout == ""  # and the connection is still open: nobody has answered
        kept = own.home / "config" / "mep"
        assert not list(kept.glob("endpoint-names-*")) if kept.exists() else True
    own.variables["MEP_RELAY_URL"] = "http://127.0.0.1:9"
    assert own.run("describe", "").stdout == ""


def test_names_that_mean_something_to_a_shell_are_left_out(own: Shell, relay: RelayProcess, ada: str) -> None:
    evil = FakeEndpoint(relay, ada, serve=False, endpoint_name="evil", display_name="$(touch evil)").endpoint_id
    own.variables |= {"MEP_SDK_COMPLETE": "1"}
    words = own.run("describe", "").stdout.splitlines()
    assert evil in words
    assert "evil" in words
    assert not [word for word in words if "$" in word]


def test_a_script_that_was_killed_finds_its_tasks_again(own: Shell, endpoint: FakeEndpoint, idle: str) -> None:
    waiting = own.run("run", "idle", "math:sqrt", "4", "--no-wait").stdout.strip()
    done = own.run("run", "cluster", "math:sqrt", "9", "--no-wait", *NODES).stdout.strip()
    until("the result", lambda: subprocess.run([TOOL, "result", done], env=own.environment).returncode == 0)
    assert own.run("result", done).stdout == "3.0\n"
    assert "waiting" in own.run("result", waiting, status=2).stdout
    pending = {one["task_id"]: one for one in own.json("tasks", "--state", "pending", "--since", "1h")}
    assert done not in pending
    assert pending[waiting]["endpoint_id"] == idle
    group = own.json("tasks", "--state", "ended", "--limit", "1")[0]["taskgroup_id"]
    assert [one["taskgroup_id"] for one in own.json("groups", "--limit", "1")] == [group]
    assert own.json("result", "--group", group) == [{"task_id": done, "status": "success", "result": 3.0}]
    assert own.json("cancel", waiting) == {waiting: True}
    assert own.run("cancel", done, status=1).stdout == f"{done}\tno\n"
    assert own.json("tasks", "--state", "pending") == []


def test_lists_have_pages_and_are_one_s_own(own: Shell, idle: str, ada: str) -> None:
    client = Client(own.relay.url, ada)
    with Executor(idle, client) as executor:
        futures = [executor.submit(pow, 2, number) for number in range(30)]
        assert executor.flush(60)
        ids = {future.task_id for future in futures}
        found, after, pages = [], "", 0
        while after is not None:
            page = own.relay.request("GET", f"/v3/tasks?state=pending&limit=7&after={after}", ada)[1]
            found += [one["task_id"] for one in page["tasks"]]
            after, pages = page["after"], pages + 1
        assert (set(found), len(found), pages) == (ids, 30, 5)
        assert len(client.tasks("pending", limit=4)) == 4
        assert client.tasks("pending", since=time.time() + 3600) == []
        groups = client.task_groups()
        assert (groups[0]["taskgroup_id"], groups[0]["tasks"]) == (str(executor.task_group_id), 30)
        assert len(client.task_groups(limit=1)) == 1
        other = Client(own.relay.url, own.relay.add_user(f"other-{time.time_ns()}@example.edu"))
        assert (other.tasks(), other.task_groups()) == ([], [])
        executor.shutdown(wait=False, cancel_futures=True)
    for query in ("state=odd", "since=now", "limit=0", "limit=x", "after=1", "after=-1.2"):
        assert own.relay.request("GET", f"/v3/tasks?{query}", ada)[0] == 422, query


def test_a_name_that_fits_no_endpoint_or_two_is_said(own: Shell, endpoint: FakeEndpoint, ada: str) -> None:
    client = Client(own.relay.url, ada)
    with pytest.raises(EndpointNotFound):
        Executor("nowhere", client)
    twin = FakeEndpoint(own.relay, ada, serve=False, endpoint_name="twin").endpoint_id
    FakeEndpoint(own.relay, ada, serve=False, endpoint_name="twin")
    private = FakeEndpoint(own.relay, ada, serve=False, endpoint_name="private", multi_user=False).endpoint_id
    assert client.endpoint_id_of("private") == private
    assert own.relay.request("PUT", f"/v3/endpoints/{private}/access", ada, {"alias": "mine"})[0] == 200
    assert client.endpoint_id_of("mine") == private
    with pytest.raises(EndpointAmbiguous, match=twin):
        client.get_endpoint_status("twin")
    stranger = Client(own.relay.url, own.relay.add_user(f"stranger-{time.time_ns()}@example.edu"))
    for name in ("cluster", "The Cluster", "ada@example.edu/private", "mine", "other@example.edu/cluster"):
        with pytest.raises(EndpointNotFound):
            stranger.get_endpoint_status(name)
    for name in ("ada@example.edu/cluster", "ada@example.edu/The Cluster"):
        assert stranger.endpoint_id_of(name) == endpoint.endpoint_id


# --- diagnostic -------------------------------------------------------------------------------------


def test_a_report_has_what_helps_and_no_secret(own: Shell, endpoint: FakeEndpoint, ada: str) -> None:
    own.variables["https_proxy"] = "http://me:hidden-word@proxy.example.edu"
    path = own.home / "report.json"
    own.run("diagnostic", "--out", str(path))
    text = path.read_text()
    report = json.loads(text)
    assert all(report[name]["ok"] for name in ("client", "proxy", "connection", "login", "endpoints"))
    assert report["login"]["found"]["username"] == "ada@example.edu"
    assert abs(report["connection"]["found"]["clock_ahead_s"]) < 600
    assert ada not in text
    assert "hidden-word" not in text


def test_a_report_says_what_fails(own: Shell) -> None:
    own.variables["MEP_TOKEN"] = "mep_wrong"
    done = own.run("diagnostic", status=1)
    report = json.loads(done.stdout)
    assert (report["connection"]["ok"], report["login"]["ok"]) == (True, False)
    assert "TokenUnknown" in report["login"]["error"]
