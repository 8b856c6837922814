"""mep-relay.toml: refusals name file, key and reason, and the command line goes first."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path

import pytest

from relay import settings
from relay.example import commented_settings
from relay.server import _http_config
from relay.settings import ConfigRefused, RelaySettings, load

REFUSED = {
    "prot = 1": "prot: there is no such key; is `port` meant?",
    "nothing_like_it = 1": "nothing_like_it: there is no such key",
    "port = 70000": "port: Expected `int` <= 65535",
    "port = '1'": "port: Expected `int`, got `str`",
    "retention_days = -1": "retention_days: Expected `float` >= 0",
    "log_format = 'xml'": "log_format: Invalid enum value 'xml'",
    "tls_certificate = '/a'": "tls_key: tls_certificate and tls_key go together",
    "trusted_proxies = ['10.0.0.0/33']": "trusted_proxies: '10.0.0.0/33' does not appear",
    "metrics_port = 8650": "metrics_port: is that of port",
    "metrics_port = -1": "metrics_port: Expected `int` >= 0",
    "database = 'mysql://x'": "database: must begin with postgresql://",
    "database = 'postgresql://a:secret@h/d'": "database: must not hold the password",
    "database = 'postgresql://a@h/d?connect_timeout=5&password=secret'": "database: must not hold the password",
    "database = 'postgresql://a@h/d?sslpassword=secret'": "database: must not hold the password",
    "database_password = '/x'": "database_password: there is no database",
    "port =": "it is not TOML: ",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_file_is_refused_with_key_and_reason(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mep-relay.toml"
    path.write_text(text)
    with pytest.raises(ConfigRefused) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: {REFUSED[text]}"), refused.value
    assert "secret" not in str(refused.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mep-relay.toml"
    path.write_text("port = 1")
    path.chmod(0o666)
    with pytest.raises(ConfigRefused, match=r"mep-relay\.toml"):
        load(path)


def test_the_command_line_goes_before_the_file_and_is_checked_as_well(tmp_path: Path) -> None:
    path = tmp_path / "mep-relay.toml"
    path.write_text("port = 1\nmax_batch = 5\n")
    found = load(path, {"port": 2, "host": None, "trusted_proxies": ()})
    assert (found.port, found.max_batch, found.host) == (2, 5, "127.0.0.1")
    with pytest.raises(ConfigRefused, match="--port: Expected"):
        load(path, {"port": 70000})
    assert load(tmp_path / "none.toml") == RelaySettings()
    with pytest.raises(ConfigRefused, match="no such file"):
        load(tmp_path / "none.toml", required=True)


def test_every_key_has_a_text_and_an_option() -> None:
    assert {one.name for one in settings.options()} == set(RelaySettings.__struct_fields__)
    assert all(one.text.endswith((".", ")")) for one in settings.options())


def test_the_example_sets_nothing_and_shows_every_key_with_its_default(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "etc/mep-relay.toml").read_text()
    assert text == commented_settings(), "run: make docs"
    path = tmp_path / "mep-relay.toml"
    path.write_text(text)
    assert load(path) == RelaySettings()
    keys = [line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")]
    path.write_text("\n".join(keys))
    assert load(path) == RelaySettings()
    assert set(tomllib.loads(path.read_text())) == set(RelaySettings.__struct_fields__)


def test_secrets_come_from_files_of_ones_own_or_from_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "password"
    path.write_text("correct horse\n")
    path.chmod(0o600)
    assert settings.secret_text("database_password", str(path)) == "correct horse"
    assert settings.secret_text("database_password", "") == ""
    path.chmod(0o644)
    with pytest.raises(ConfigRefused, match="database_password: "):
        settings.secret_text("database_password", str(path))
    with pytest.raises(ConfigRefused, match="systemd has handed over no credential"):
        settings.secret_text("database_password", "credential:password")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert settings.secret_text("database_password", "credential:password") == "correct horse"
    for name in ("../password", "none"):
        with pytest.raises(ConfigRefused, match="database_password: "):
            settings.secret_text("database_password", f"credential:{name}")


@pytest.mark.parametrize(
    ("trusted", "peer", "seen"),
    [
        ([], "127.0.0.1", ("127.0.0.1", "http")),
        (["192.0.2.0/24"], "127.0.0.1", ("127.0.0.1", "http")),
        (["192.0.2.0/24"], "192.0.2.7", ("203.0.113.9", "https")),
        (["127.0.0.1"], "127.0.0.1", ("203.0.113.9", "https")),
    ],
)
def test_forwarded_headers_count_from_named_proxies_alone(
    trusted: list[str], peer: str, seen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own way in
    told = []

    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        told.append((scope["client"][0], scope["scheme"]))  # type: ignore[index]

    config = _http_config(app, RelaySettings(trusted_proxies=trusted))  # type: ignore[arg-type]
    config.load()
    headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "client": (peer, 1), "scheme": "http", "headers": headers}
    asyncio.run(config.loaded_app(scope, None, None))
    assert told == [seen]
