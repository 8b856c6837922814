"""Which relay is asked, with which token, and the refusals before anything is sent."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys

import pytest

from mep_sdk import Client, Executor
from mep_sdk.errors import InsecureRelay, SettingsFileUnsafe
from mep_sdk.settings import find_settings
from mep_wire.errors import NotConfigured

URL = "https://relay.example.edu"


def write(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "client.toml"


def test_arguments_come_first(file):
    env = {"MEP_RELAY_URL": "https://other", "MEP_TOKEN": "other"}
    found = find_settings(URL, "secret", environ=env, file=file)
    assert (found.relay_url, found.token) == (URL, "secret")


def test_environment(file):
    found = find_settings(environ={"MEP_RELAY_URL": URL + "/", "MEP_TOKEN": "secret"}, file=file)
    assert (found.relay_url, found.token) == (URL, "secret")


def test_file(file):
    write(file, f'relay_url = "{URL}"\ntoken = "secret"\n')
    assert find_settings(environ={}, file=file).token == "secret"


def test_a_token_of_the_file_is_not_sent_to_another_relay(file):
    write(file, f'relay_url = "{URL}"\ntoken = "secret"\n')
    with pytest.raises(NotConfigured, match=f"The token in {file} is for {URL}"):
        find_settings("https://elsewhere.example.org", environ={}, file=file)


def test_a_file_that_others_can_read_is_refused(file):
    write(file, f'relay_url = "{URL}"\ntoken = "secret"\n', 0o644)
    with pytest.raises(SettingsFileUnsafe, match="chmod 600"):
        find_settings(environ={}, file=file)


def test_a_file_that_is_no_toml(file):
    write(file, "relay_url: yaml")
    with pytest.raises(NotConfigured, match="cannot be read"):
        find_settings(environ={}, file=file)


@pytest.mark.parametrize(("url", "token", "says"), [(None, "t", "MEP_RELAY_URL"), (URL, None, "MEP_TOKEN")])
def test_what_is_missing_is_named(url, token, says, file):
    with pytest.raises(NotConfigured, match=says):
        find_settings(url, token, environ={}, file=file)


ODD_URLS = ["http://[::1", "http://localhost:99999", "http://localhost:port", "http://local host", "http://a\x00b"]


@pytest.mark.parametrize(
    "url", ["ftp://x", "relay.example.edu", "https://", "https://me:pw@relay.example.edu", *ODD_URLS]
)
def test_what_is_no_address(url, file):
    with pytest.raises(NotConfigured, match="URL"):
        find_settings(url, "t", environ={}, file=file)


def test_plain_http_only_to_this_machine(file):
    assert find_settings("http://127.0.0.1:8650", "t", environ={}, file=file)
    with pytest.raises(InsecureRelay):
        find_settings("http://relay.example.edu", "t", environ={}, file=file)
    assert find_settings("http://relay.example.edu", "t", allow_insecure=True, environ={}, file=file)


def test_the_token_is_in_no_repr(file):
    assert "secret" not in repr(find_settings(URL, "secret", environ={}, file=file))


@pytest.mark.parametrize("token", ["a\r\nX-Evil: 1", "a b", "snow\u2603", "e\u0301", "a\udc80", "a\x00", "a\x7f"])
def test_a_token_cannot_carry_a_header(token, file):
    with pytest.raises(NotConfigured, match="no token has"):
        find_settings(URL, token, environ={}, file=file)


@pytest.fixture
def nobody_known(monkeypatch):
    """The environment of a uid without an account, as in a container."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setenv("MEP_RELAY_URL", URL)
    monkeypatch.setenv("MEP_TOKEN", "secret")


@pytest.mark.parametrize("make", [find_settings, Client, Executor, lambda: Executor(client=Client(URL, "other"))])
def test_a_uid_without_an_account_needs_no_home(make, nobody_known):
    assert make() is not None


@pytest.mark.parametrize("missing", ["MEP_RELAY_URL", "MEP_TOKEN"])
def test_without_a_home_no_file_is_named(missing, nobody_known, monkeypatch):
    monkeypatch.delenv(missing)
    with pytest.raises(NotConfigured, match=f"or set {missing}"):
        find_settings()


@pytest.mark.root
def test_a_process_of_such_a_uid():
    code = "from mep_sdk import Client, Executor; print(Executor(), Client())"
    env = {"MEP_RELAY_URL": URL, "MEP_TOKEN": "secret"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, user=54321, group=54321, cwd="/", capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert URL in ran.stdout


@pytest.mark.parametrize("home", ["/dev/null", "/proc/self/no/such"])
def test_a_home_that_is_no_directory_holds_no_file(home, monkeypatch):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(NotConfigured, match="MEP_TOKEN"):
        find_settings(URL, environ={})


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    os.mkdir(tmp_path / "client.toml")
    with pytest.raises(NotConfigured, match=r"client.toml cannot be read"):
        find_settings(URL, environ={}, file=tmp_path / "client.toml")


def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "client.toml", 0o600)
    with pytest.raises(NotConfigured, match=r"client.toml is not a file"):
        find_settings(URL, environ={}, file=tmp_path / "client.toml")
