"""Stored logins: which one is used, who can read it, and one lock for threads and processes."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mep_sdk import profiles
from mep_sdk.errors import InsecureRelay, ProfileUnknown, SettingsFileUnsafe
from mep_sdk.login_settings import client_settings
from mep_sdk.profiles import Profile
from mep_sdk.settings import ClientSettings
from mep_sdk.token_sources import ServiceLogin, StoredLogin
from mep_wire.errors import NotConfigured

CAMPUS, LAB = "https://relay.example.edu", "https://relay.example.org"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "config" / "mep"


def save(name: str, url: str = CAMPUS) -> None:
    profiles.save_profile(name, Profile(relay_url=url, access_token=f"mep_{name}"))


def found(tmp_path: Path, *words: str | None, profile: str | None = None, **env: str) -> ClientSettings:
    return client_settings(*words, profile=profile, environ=env, file=tmp_path / "client.toml")


def name_of(settings: ClientSettings) -> str:
    assert isinstance(settings.source, StoredLogin)
    return settings.source.name


def test_the_profile_of_the_relay_is_used_and_else_the_default(tmp_path: Path) -> None:
    save("campus")
    assert name_of(found(tmp_path)) == "campus"
    save("lab", LAB)
    assert name_of(found(tmp_path, LAB)) == "lab"
    assert name_of(found(tmp_path, MEP_RELAY_URL=CAMPUS + "/")) == "campus"
    with pytest.raises(NotConfigured, match="mep-sdk login"):
        found(tmp_path)
    profiles.choose_default("lab")
    assert name_of(found(tmp_path)) == "lab"
    assert name_of(found(tmp_path, MEP_PROFILE="campus")) == "campus"
    assert name_of(found(tmp_path, profile="campus", MEP_PROFILE="lab")) == "campus"


def test_a_token_wins_over_every_login(tmp_path: Path) -> None:
    save("campus")
    env = {"MEP_TOKEN": "given", "MEP_CLIENT_ID": "id", "MEP_CLIENT_SECRET": "secret"}
    for settings in (
        found(tmp_path, **env),
        found(tmp_path, profile="campus", **env),
        found(tmp_path, CAMPUS, "given"),
    ):
        assert (settings.relay_url, settings.bearer(), settings.source) == (CAMPUS, "given", None)


def test_a_service_and_the_settings_file_come_before_the_default_login(tmp_path: Path) -> None:
    save("campus")
    file = tmp_path / "client.toml"
    file.write_text(f'relay_url = "{LAB}"\ntoken = "of-the-file"\n')
    file.chmod(0o600)
    assert found(tmp_path).bearer() == "of-the-file"
    service = found(tmp_path, MEP_CLIENT_ID="id", MEP_CLIENT_SECRET="secret")
    assert isinstance(service.source, ServiceLogin)
    assert service.relay_url == LAB
    assert name_of(found(tmp_path, CAMPUS)) == "campus"
    assert name_of(found(tmp_path, profile="campus")) == "campus"


def test_a_login_is_used_at_its_own_relay_alone(tmp_path: Path) -> None:
    save("campus")
    with pytest.raises(NotConfigured, match=CAMPUS):
        found(tmp_path, LAB, profile="campus")
    with pytest.raises(NotConfigured):
        found(tmp_path, LAB)
    save("plain", "http://relay.example.edu")
    with pytest.raises(InsecureRelay):
        found(tmp_path, profile="plain")


def test_an_unknown_profile_names_the_known_ones(tmp_path: Path) -> None:
    save("campus")
    with pytest.raises(ProfileUnknown, match="known: campus"):
        found(tmp_path, profile="other")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "a\nb", "x" * 65])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(NotConfigured, match="no name"):
        profiles.find_profile(name)


def test_a_login_is_for_its_owner_alone_and_shows_no_token(directory: Path) -> None:
    save("campus")
    path = directory / "profiles" / "campus.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "mep_campus" not in repr(profiles.get_profile("campus"))
    assert [each.name for each in path.parent.iterdir()] == ["campus.json"]
    path.chmod(0o640)
    with pytest.raises(SettingsFileUnsafe):
        profiles.get_profile("campus")


def test_a_damaged_login_says_how_to_mend_it(directory: Path) -> None:
    save("campus")
    (directory / "profiles" / "campus.json").write_text("{")
    with pytest.raises(NotConfigured, match="mep-sdk login --profile campus"):
        profiles.get_profile("campus")


COUNT = """
from mep_sdk import profiles
for _ in range(20):
    with profiles.locked("campus"):
        stored = profiles.get_profile("campus")
        stored.scope = str(int(stored.scope) + 1)
        profiles.save_profile("campus", stored)
"""


def test_threads_and_processes_wait_for_one_another() -> None:
    profiles.save_profile("campus", Profile(relay_url=CAMPUS, access_token="t", scope="0"))
    processes = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(2)]
    threads = [threading.Thread(target=exec, args=(COUNT, {})) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert profiles.get_profile("campus").scope == "80"
