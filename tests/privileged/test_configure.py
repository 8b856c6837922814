"""Configuring as root: the owner of each file, who makes the keys, who talks to the relay, and leftovers on failure."""

from __future__ import annotations

import json
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import account
from tests.support.cli import Cli
from tests.support.registrar import REFUSAL, TOKEN, Registrar, configure


def owner_and_mode(path: Path) -> tuple[str, str]:
    found = path.stat()
    return pwd.getpwuid(found.st_uid).pw_name, f"{stat.S_IMODE(found.st_mode):04o}"


def test_whose_every_file_is(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    manager, mapper = mep.helpers("site")
    expected = {
        "etc": ("root", "0755"),
        "etc/site": ("root", "0755"),
        "etc/site/config.yaml": ("root", "0600"),
        "etc/site/user_config_template.yaml.j2": ("root", "0600"),
        "etc/site/user_config_schema.json": ("root", "0600"),
        "etc/site/user_environment.yaml": ("root", "0600"),
        "etc/site/identity_mapping.json": ("root", "0640"),
        "var": ("root", "0755"),
        "var/site": ("root", "0755"),
        "var/site/keys.json": ("root", "0644"),
        "var/site/registration.json": ("root", "0644"),
        "var/site/link.key": (manager.pw_name, "0400"),
        "var/site/unseal.key": (mapper.pw_name, "0400"),
    }
    found = {}
    for top in ("etc", "var"):
        for path in [mep.directory / top, *(mep.directory / top).rglob("*")]:
            found[str(path.relative_to(mep.directory))] = owner_and_mode(path)
    assert found == expected
    mapping = (mep.directory / "etc/site/identity_mapping.json").stat()
    assert mapping.st_gid == mapper.pw_gid
    for key in ("link.key", "unseal.key"):
        assert (mep.directory / "var/site" / key).stat().st_size == 32


def test_the_relay_is_called_by_an_account_for_that_alone_and_the_token_shows_nowhere(
    mep: Cli, registrar: Registrar
) -> None:
    configure(mep, registrar, "--display-name", "A site")
    (call,) = registrar.calls
    assert (call["method"], call["path"], call["token"]) == ("POST", "/v3/endpoints", f"Bearer {TOKEN}")
    assert call["uid"] == pwd.getpwnam("mep-register").pw_uid
    assert call["showing"] == []
    body = call["body"]
    assert (body["endpoint_name"], body["display_name"], body["multi_user"]) == ("site", "A site", True)
    assert len(body["link_public_key"]) == 40
    assert len(bytes.fromhex(body["unseal_public_key"])) == 32
    for path in mep.directory.rglob("*"):
        assert path.name == "token" or path.is_dir() or TOKEN.encode() not in path.read_bytes(), path


def test_the_public_keys_belong_to_the_secret_ones(mep: Cli, registrar: Registrar) -> None:
    import zmq
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from zmq.utils import z85

    configure(mep, registrar)
    body = registrar.calls[0]["body"]
    link = (mep.directory / "var/site/link.key").read_bytes()
    unseal = X25519PrivateKey.from_private_bytes((mep.directory / "var/site/unseal.key").read_bytes())
    assert zmq.curve_public(z85.encode(link)).decode() == body["link_public_key"]
    assert unseal.public_key().public_bytes_raw().hex() == body["unseal_public_key"]


def test_a_refusal_leaves_what_register_can_go_on_with(mep: Cli, registrar: Registrar) -> None:
    registrar.answer = (401, REFUSAL)
    said = configure(mep, registrar, expect=5).stderr
    assert "TOKEN_UNKNOWN" in said
    assert "mep register site" in said
    assert not mep.path("var", "site", "registration.json").exists()
    assert "mep register site" in mep("start", "site", "--detach", expect=4).stderr
    registrar.answer = None
    mep("register", "site", "--token-file", str(mep.directory / "token"))
    first, second = registrar.calls
    assert first["body"] == second["body"]
    assert (
        json.loads(mep.path("var", "site", "registration.json").read_text())["endpoint_id"]
        == second["body"]["endpoint_uuid"]
    )


def test_registered_twice_only_when_asked(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    token = str(mep.directory / "token")
    assert "--again" in mep("register", "site", "--token-file", token, expect=1).stderr
    mep("register", "site", "--again", "--token-file", token)
    assert registrar.calls[1]["method"] == "PUT"
    assert registrar.calls[1]["path"].endswith(registrar.calls[0]["body"]["endpoint_uuid"])


def test_a_relay_that_has_lost_the_endpoint_gets_it_again_under_its_id(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    registrar.forgetful = True
    mep("register", "site", "--again", "--token-file", str(mep.directory / "token"))
    assert [call["method"] for call in registrar.calls] == ["POST", "PUT", "POST"]
    assert registrar.calls[0]["body"] == registrar.calls[2]["body"]


def test_nothing_is_overwritten(mep: Cli, registrar: Registrar) -> None:
    configure(mep, registrar)
    before = {path: path.read_bytes() for path in mep.directory.rglob("*") if path.is_file()}
    said = configure(mep, registrar, expect=1).stderr
    assert "already has config.yaml" in said
    assert before == {path: path.read_bytes() for path in mep.directory.rglob("*") if path.is_file()}
    assert len(registrar.calls) == 1


def test_one_foreign_file_is_enough_to_touch_nothing(mep: Cli, registrar: Registrar) -> None:
    directory = mep.path("etc", "site")
    directory.mkdir(parents=True)
    (directory / "user_environment.yaml").write_text("A: 1\n")
    assert "already has user_environment.yaml" in configure(mep, registrar, expect=1).stderr
    assert [path.name for path in directory.iterdir()] == ["user_environment.yaml"]
    assert registrar.calls == []


@pytest.mark.parametrize("answer", [
    (200, {"endpoint_id": "other"}),
    (200, {"endpoint_id": "", "link_address": "x", "link_public_key": "", "signing_public_key": "", "owner": []}),
    (500, {}), (302, {}), (200, {}),
])  # fmt: skip
def test_an_answer_that_is_no_registration(mep: Cli, registrar: Registrar, answer: tuple[int, dict[str, Any]]) -> None:
    registrar.answer = answer
    configure(mep, registrar, expect=5)
    assert not mep.path("var", "site", "registration.json").exists()


def test_a_relay_that_hands_out_another_id_or_half_a_key_is_refused(mep: Cli, registrar: Registrar) -> None:
    good = {"link_address": "tcp://x:1", "link_public_key": "11" * 32, "signing_public_key": "22" * 32, "owner": []}
    registrar.answer = (200, {**good, "endpoint_id": "8d3a3c0e-5b1e-4b5f-9d0a-111111111111"})
    assert "registered 8d3a3c0e" in configure(mep, registrar, expect=5).stderr
    identity = json.loads(mep.path("var", "site", "keys.json").read_text())
    registrar.answer = (200, {**good, "endpoint_id": identity["endpoint_id"], "signing_public_key": "22"})
    assert "32 bytes" in mep("register", "site", "--token-file", str(mep.directory / "token"), expect=5).stderr


def test_a_token_file_that_others_can_read_is_refused(mep: Cli, registrar: Registrar) -> None:
    (mep.directory / "token").chmod(0o644)
    assert "chmod 600" in configure(mep, registrar, expect=2).stderr
    assert not mep.path("etc", "site").exists()


def test_root_has_no_single_user_endpoint(mep: Cli, registrar: Registrar) -> None:
    said = mep("configure", "site", "--relay", registrar.url, expect=2).stderr
    assert "--multi-user" in said


def test_a_plain_http_relay_elsewhere_is_refused(mep: Cli) -> None:
    said = mep(
        "configure", "site", "--multi-user", "--relay", "http://relay.example.org", MEP_TOKEN="x", expect=4
    ).stderr
    assert "https" in said
    assert not mep.path("etc", "site").exists()


def test_python_variables_of_the_caller_are_not_used(mep: Cli) -> None:
    (mep.directory / "click.py").write_text("raise SystemExit('foreign code ran as root')")
    command = [sys.executable, "-c", "from mep.cli.main import main; main()", "--version"]
    environment = {**mep.environment, "PYTHONPATH": str(mep.directory)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/", timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "version" in done.stdout


@pytest.mark.parametrize("module", ["mep.manager", "mep.mapper"])
def test_what_must_not_be_root_says_so(module: str) -> None:
    done = subprocess.run([sys.executable, "-I", "-m", module, "link", "1"], capture_output=True, text=True, timeout=30,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert "refuses to run as root" in done.stderr


class TestTrust:
    """Files that another account could have written are not acted upon."""

    @pytest.fixture
    def site(self, mep: Cli, registrar: Registrar) -> Cli:
        configure(mep, registrar)
        return mep

    def test_as_configured(self, site: Cli) -> None:
        site("check", "site")

    def refused(self, site: Cli, *, path: Path, reason: str) -> None:
        said = site("check", "site", expect=4).stderr
        assert str(path) in said
        assert reason in said

    @pytest.mark.parametrize("name", ["config.yaml", "user_config_template.yaml.j2", "user_config_schema.json",
                                      "user_environment.yaml", "identity_mapping.json"])  # fmt: skip
    def test_a_file_that_everybody_may_write(self, site: Cli, name: str) -> None:
        path = site.path("etc", "site", name)
        path.chmod(0o666)
        self.refused(site, path=path, reason=f"chmod go-w {path}")

    def test_a_file_of_another_account(self, site: Cli) -> None:
        path = site.path("etc", "site", "config.yaml")
        with account() as somebody:
            os.chown(path, somebody.uid, -1)
            self.refused(site, path=path, reason=f"chown root {path}")

    def test_a_group_that_may_write(self, site: Cli) -> None:
        path = site.path("etc", "site", "identity_mapping.json")
        path.chmod(0o660)
        self.refused(site, path=path, reason=f"chmod go-w {path}")

    def test_a_directory_that_everybody_may_write(self, site: Cli) -> None:
        path = site.path("etc", "site")
        path.chmod(0o777)
        self.refused(site, path=path, reason="bad permissions: chmod go-w")

    def test_a_link_to_a_file_in_such_a_directory(self, site: Cli) -> None:
        loose = site.directory / "loose"
        loose.mkdir()
        loose.chmod(0o777)
        path = site.path("etc", "site", "config.yaml")
        path.rename(loose / "config.yaml")
        path.symlink_to(loose / "config.yaml")
        self.refused(site, path=loose, reason="bad permissions: chmod go-w")

    def test_a_template_link_that_leaves_its_directory(self, site: Cli) -> None:
        path = site.path("etc", "site", "passwd.j2")
        path.symlink_to("/etc/passwd")
        self.refused(site, path=path, reason="leaves")

    def test_a_mapping_that_the_mapper_cannot_read(self, site: Cli) -> None:
        path = site.path("etc", "site", "identity_mapping.json")
        path.chmod(0o600)
        self.refused(site, path=path, reason=f"cannot be read by account {site.helpers('site')[1].pw_name}")
        path.chmod(0o644)
        path.parent.chmod(0o700)
        self.refused(site, path=path.parent, reason="chmod o+x")

    def test_a_pipe_in_place_of_a_file(self, site: Cli) -> None:
        path = site.path("etc", "site", "user_environment.yaml")
        path.unlink()
        os.mkfifo(path, 0o600)
        self.refused(site, path=path, reason="not a regular file")

    def test_only_templates_go_to_people(self, site: Cli) -> None:
        import msgspec

        from mep_wire.bundle import UepBundle

        (site.path("etc", "site") / "ldap.password").write_text("secret-1")
        (site.path("etc", "site") / "part.j2").write_text("# included")
        (site.path("etc", "site") / ".hidden.j2").write_text("secret-2")
        config, bundle = os.memfd_create("config"), os.memfd_create("bundle")
        command = [sys.executable, "-I", "-m", "mep.cli", "resolve", "site"]
        for kind in ("etc", "var", "run"):
            command += [f"--{kind}", str(site.directory / kind)]
        command += ["--config-fd", str(config), "--bundle-fd", str(bundle)]
        subprocess.run(command, check=True, pass_fds=[config, bundle], timeout=30)
        data = os.pread(bundle, 1 << 24, 0)
        os.close(config)
        os.close(bundle)
        assert set(msgspec.msgpack.decode(data, type=UepBundle).templates) == {
            "user_config_template.yaml.j2",
            "part.j2",
        }
        assert b"secret-" not in data
