"""The command `mep-sdk` against a real relay: logins, their profiles, and what a client does with them."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mep_sdk import Client, profiles
from mep_sdk.authorization_server import AuthorizationServer
from mep_sdk.errors import LoginOver
from tests.support.browser import Browser
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
    shell.log_in()
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
