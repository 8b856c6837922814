"""Which relay is asked, with which token, and the refusals before anything is sent."""

from __future__ import annotations

import pytest

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
    with pytest.raises(NotConfigured, match="token"):
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


@pytest.mark.parametrize("url", ["ftp://x", "relay.example.edu", "https://", "https://me:pw@relay.example.edu"])
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


def test_a_token_cannot_carry_a_header(file):
    with pytest.raises(NotConfigured, match="line break"):
        find_settings(URL, "a\r\nX-Evil: 1", environ={}, file=file)
