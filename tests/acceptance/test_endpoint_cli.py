"""The command line with a real relay: an endpoint's life from configure to delete, and the report of each failure."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess
from tests.support.waiting import until

KIND = ["--multi-user"] if os.geteuid() == 0 else []


@pytest.fixture(scope="module")
def token(relay: RelayProcess) -> str:
    return relay.add_user("admin@example.edu")


@pytest.fixture
def mep(token: str) -> Iterator[Cli]:
    with open_directory() as directory:
        cli = Cli(directory, variables={"MEP_TOKEN": token})
        yield cli
        for name in ("site", "other"):
            if cli.path("run", name).exists():
                cli("stop", name, "--kill")


@pytest.fixture
def site(mep: Cli, relay: RelayProcess) -> Cli:
    mep("configure", "site", *KIND, "--relay", relay.url)
    return mep


def test_the_life_of_an_endpoint(mep: Cli, relay: RelayProcess, token: str) -> None:
    assert mep.json("list") == []
    made = mep.json("configure", "site", *KIND, "--relay", relay.url, "--display-name", "A site")
    endpoint = made["endpoint_id"]
    status, answer = relay.request("GET", f"/v2/endpoints/{endpoint}", token)
    assert status == 200
    assert answer["display_name"] == "A site"
    assert mep.json("check", "site")["endpoint_id"] == endpoint

    assert mep.json("status", "site", expect=3)["state"] == "stopped"
    pid = mep.json("start", "site", "--detach")["pid"]
    assert os.getpgid(pid) == os.getsid(pid) == pid
    found = until("a link that is up", lambda: (s := mep.json("status", "site"))["link"] == "up" and s)
    assert (found["state"], found["pid"], found["endpoint_id"]) == ("up", pid, endpoint)
    (row,) = mep.json("list")
    assert (row["name"], row["state"]) == ("site", "up")
    status, answer = relay.request("GET", f"/v2/endpoints/{endpoint}/status", token)
    assert (status, answer["status"]) == (200, "online")

    assert "running already" in mep("start", "site", "--detach", expect=1).stderr
    assert "is running" in mep("delete", "site", "--yes", expect=1).stderr
    again = mep.json("restart", "site")["pid"]
    assert again != pid
    assert mep.json("stop", "site") == {"name": "site", "was_running": True, "pid": again, "left": 0}
    assert mep.json("stop", "site")["was_running"] is False
    mep("delete", "site", "--yes")
    assert not mep.path("etc", "site").exists()
    assert relay.request("GET", f"/v2/endpoints/{endpoint}", token)[0] == 404


def test_globus_computes_command_line(site: Cli) -> None:
    code = "import sys; sys.argv[0] = '/x/globus-compute-endpoint'\nfrom mep.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "list"],
        env=site.environment, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("site\tstopped\t")


def test_another_configuration_directory(mep: Cli, relay: RelayProcess) -> None:
    with open_directory() as elsewhere:
        mep("-c", str(elsewhere), "configure", "site", *KIND, "--relay", relay.url)
        assert (elsewhere / "site" / "config.yaml").exists()
        assert mep.json("list") == []
        (row,) = mep.json("-c", str(elsewhere), "list")
        mep("-c", str(elsewhere), "start", "site", "--detach")
        assert mep.json("-c", str(elsewhere), "status", "site")["endpoint_id"] == row["endpoint_id"]
        mep("-c", str(elsewhere), "delete", "site", "--yes", "--force")
        assert list(elsewhere.iterdir()) == []


def test_in_the_foreground_it_becomes_the_monitor_and_ends_at_sigterm(site: Cli) -> None:
    command = [sys.executable, "-I", "-m", "mep.cli", "start", "site"]
    process = subprocess.Popen(command, env=site.environment, stderr=subprocess.PIPE, cwd="/")
    try:
        until(
            "a link that is up",
            lambda: site.path("run", "site", "status.json").exists() and site.json("status", "site")["link"] == "up",
        )
        assert site.json("status", "site")["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert b" INFO monitor[" in said


def test_a_changed_configuration_is_taken_at_hang_up_and_a_bad_one_is_not(site: Cli) -> None:
    pid = site.json("start", "site", "--detach")["pid"]
    log = site.path("var", "site", "endpoint.log")
    config = site.path("etc", "site", "config.yaml")
    good = config.read_text()
    config.write_text(good + "caps:\n  max_startin: 1\n")
    os.kill(pid, signal.SIGHUP)
    until("a hint in the log", lambda: "did you mean caps.max_starting?" in log.read_text())
    assert site.json("status", "site", expect=9)["pid"] == pid
    assert "config.yaml:" in site("restart", "site", expect=4).stderr
    assert site.json("status", "site", expect=9)["pid"] == pid
    config.write_text(good + "caps:\n  max_starting: 1\n")
    os.kill(pid, signal.SIGHUP)
    until("the configuration is reloaded", lambda: "configuration reloaded" in log.read_text())
    assert site.json("status", "site")["pid"] == pid


def test_a_token_that_the_relay_does_not_know(mep: Cli, relay: RelayProcess) -> None:
    said = mep("configure", "site", *KIND, "--relay", relay.url, expect=5, MEP_TOKEN="mep_nothing").stderr
    assert "TOKEN_UNKNOWN" in said
    assert "(relay_url is in config.yaml): mep register site" in said
    mep("register", "site")
    mep("check", "site")


@pytest.mark.parametrize("bad", ["", "two words", "tab\there", "übel"])
def test_a_token_that_is_none(mep: Cli, relay: RelayProcess, bad: str) -> None:
    mep("configure", "site", *KIND, "--relay", relay.url, expect=2, MEP_TOKEN=bad)
    assert not mep.path("etc", "site").exists()


def test_no_token(mep: Cli, relay: RelayProcess) -> None:
    del mep.variables["MEP_TOKEN"]
    assert "--token-file" in mep("configure", "site", *KIND, "--relay", relay.url, expect=2).stderr


def test_a_relay_that_is_not_there(mep: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    said = mep("configure", "site", *KIND, "--relay", url, expect=5).stderr
    assert said.count("trying again in") == 3
    assert "cannot be reached: Connection refused" in said
    assert "mep register site" in said


def test_another_persons_endpoint_cannot_be_deleted(site: Cli, relay: RelayProcess) -> None:
    other = relay.add_user("mallory@example.edu")
    said = site("delete", "site", "--yes", expect=5, MEP_TOKEN=other).stderr
    assert "Nothing was deleted" in said
    site("check", "site")


def test_an_endpoint_that_the_relay_has_forgotten_can_be_deleted(site: Cli, relay: RelayProcess, token: str) -> None:
    endpoint = site.json("check", "site")["endpoint_id"]
    assert relay.request("DELETE", f"/v2/endpoints/{endpoint}", token)[0] == 200
    site("delete", "site", "--yes")


def test_an_endpoint_that_was_deleted_at_the_relay_comes_back_as_a_new_one(
    site: Cli, relay: RelayProcess, token: str
) -> None:
    endpoint = site.json("check", "site")["endpoint_id"]
    assert relay.request("DELETE", f"/v2/endpoints/{endpoint}", token)[0] == 200
    assert "mep register site --new-id" in site("register", "site", "--again", expect=5).stderr
    assert site.json("check", "site")["endpoint_id"] == endpoint
    new = site.json("register", "site", "--new-id")["endpoint_id"]
    assert new != endpoint
    assert relay.request("GET", f"/v2/endpoints/{new}", token)[0] == 200


def test_moving_to_another_relay(site: Cli, tmp_path: Path) -> None:
    with RelayProcess(tmp_path) as other:
        config = site.path("etc", "site", "config.yaml")
        config.write_text(
            "\n".join(line for line in config.read_text().splitlines() if not line.startswith("relay_url"))
        )
        with config.open("a") as file:
            file.write(f"\nrelay_url: {other.url}\n")
        assert "is registered with" in site("check", "site").stderr
        token = other.add_user("admin@example.edu")
        assert "RELAY_KEY_CHANGED" in site("register", "site", "--again", expect=5, MEP_TOKEN=token).stderr
        fingerprint = json.loads(other.cli("key", "--json").stdout)["fingerprint"]
        site("register", "site", "--again", "--new-relay-key", fingerprint, MEP_TOKEN=token)
        assert "is registered with" not in site("check", "site").stderr
        site("start", "site", "--detach")
        until("a link that is up", lambda: site.json("status", "site")["link"] == "up")
        site("stop", "site")


def test_what_is_told_to_the_relay_again(site: Cli, relay: RelayProcess, token: str) -> None:
    endpoint = site.json("check", "site")["endpoint_id"]
    config = site.path("etc", "site", "config.yaml")
    assert "--again" not in site("check", "site").stderr
    config.write_text(config.read_text() + "display_name: Another name\n")
    assert "mep register site --again" in site("check", "site").stderr
    assert site.json("register", "site", "--again")["endpoint_id"] == endpoint
    assert relay.request("GET", f"/v2/endpoints/{endpoint}", token)[1]["display_name"] == "Another name"
    assert "--again" not in site("check", "site").stderr


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a b", "-x", "x" * 64, "", "uep", "relay", "a\nb"])
def test_names_that_no_endpoint_has(mep: Cli, name: str) -> None:
    said = mep("status", "--", name, expect=4).stderr
    assert "endpoint name" in said


def test_an_endpoint_that_does_not_exist(mep: Cli) -> None:
    assert "mep configure nowhere" in mep("start", "nowhere", expect=4).stderr
    assert "there is no endpoint" in mep("stop", "nowhere", expect=4).stderr
    assert "there is no endpoint" in mep("delete", "nowhere", "--yes", expect=4).stderr


def test_delete_asks_first(site: Cli) -> None:
    site("delete", "site", expect=1)
    site("check", "site")


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("user_config_schema.json", '{"type":\n 5}', "type"),
        ("user_config_schema.json", '{"type":\n "object",}', ":2"),
        ("user_config_schema.json", '{"properties": {"n": {"type": "int"}}}', "types are array, boolean, integer, "),
        ("user_config_schema.json", '{"properties": {"x": {"$ref": "https://example.org/x"}}}', "nothing is fetched"),
        ("user_config_schema.json", '{"properties": {"parent_config": {}}}', "parent_config"),
        ("user_config_schema.json", "[]", "JSON object"),
        ("user_environment.yaml", "A: 1\nB: [\n", ":3"),
        ("user_environment.yaml", "A B: 1\n", "A B"),
        ("user_environment.yaml", "A: true\n", "put it in quotes"),
        ("user_environment.yaml", "- A\n", "mapping"),
        ("user_config_template.yaml.j2", b"\xff\xfe", "not UTF-8"),
        (
            "config.yaml",
            "{config}pre_start_hook: {path: /no/hook}\n",
            ": pre_start_hook.path: /no/hook: No such file",
        ),
        ("config.yaml", "multi_usr: true\n", "config.yaml:1: multi_usr: unknown key; did you mean multi_user?"),
    ],
)
def test_a_bad_file_is_named_with_its_place(site: Cli, name: str, text: str | bytes, where: str) -> None:
    path = site.path("etc", "site", name)
    content = text if isinstance(text, bytes) else text.replace("{config}", path.read_text()).encode()
    path.write_bytes(content)
    said = site("check", "site", expect=4).stderr
    assert name in said
    assert where in said
    assert said == site("start", "site", "--detach", expect=4).stderr


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("engine:\n  type: ProcessPolEngine\n", ":2: the template's output is refused: engine.type"),
        ("{# x\n#}\nengine:\n  type: ProcessPoolEngine\n  max_wrkers: 1\n", ":5: the template's output is refused"),
        ("engine: [\n", "refused: while parsing"),
        (
            "engine:\n  type: ThreadPoolEngine\nx: {{ 1 // 0 }}\n",
            ":3: the template's output is refused: ZeroDivision",
        ),
        ("{% for x in range(10**5) %}{% for y in range(10**5) %}{% endfor %}{% endfor %}engine: x", "20 s"),
    ],
)
def test_check_renders_the_template_and_finds_what_starts_would_fail_of(site: Cli, text: str, where: str) -> None:
    path = site.path("etc", "site", "user_config_template.yaml.j2")
    path.write_text(text)
    said = site("check", "site", expect=4).stderr
    assert f"{path}" in said
    assert where in said


def test_check_says_a_warning_once(site: Cli) -> None:
    config = site.path("etc", "site", "config.yaml")
    config.write_text(config.read_text() + "amqp_port: 443\n")
    done = site("check", "site")
    assert (done.stdout + done.stderr).count("amqp_port") == 1
    done = site("check", "site", "--json")
    assert "amqp_port" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        (
            "user_environment.yaml",
            "A: x\nLIB: $HOME/lib\n",
            ":2: LIB: $HOME stays as it is: only ${HOME} and ${USER} are",
        ),
        ("user_environment.yaml", "A: '${SCRATCH}/x'\n", ":1: A: ${SCRATCH} stays as it is"),
        ("user_environment.yaml", "A: $(hostname)\n", ":1: A: $( stays as it is"),
        ("user_environment.yaml", "A: '${HOME}/x:${USER}'\nB: costs 5$\n", ""),
    ],
)
def test_check_warns_of_variables_that_nothing_replaces(site: Cli, name: str, text: str, where: str) -> None:
    path = site.path("etc", "site", name)
    path.write_text(text)
    said = site("check", "site").stderr
    assert f"{path}{where}" in said if where else str(path) not in said


@pytest.mark.parametrize("key", ["log_path", "audit_log_path", "task_log_path"])
def test_a_directory_that_is_missing_is_not_made_silently(site: Cli, key: str) -> None:
    config = site.path("etc", "site", "config.yaml")
    missing = site.directory / "nosuch"
    lines = len(config.read_text().splitlines())
    config.write_text(config.read_text() + f"{key}: {missing}/x.log\n")
    for words in (("check", "site"), ("start", "site", "--detach")):
        said = site(*words, expect=4).stderr
        assert f"{config}:{lines + 1}: {key}: there is no directory {missing}" in said
        assert f"install -d -m 755 {missing}" in said
    assert not missing.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a mapping is for multi-user endpoints, and PAM needs root")
def test_check_warns_of_accounts_and_modules_that_a_start_will_miss(site: Cli) -> None:
    rules = [{"source": "{username}", "match": name, "output": name} for name in ("meptest-nobody-here", "nobody")]
    mapping = site.path("etc", "site", "identity_mapping.json")
    mapping.write_text(json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": rules}]))
    service = Path("/etc/pam.d/meptest-modules")
    service.write_text("account required pam_permit.so\n-session optional pam_x.so\nsession required pam_nosuch.so\n")
    config = site.path("etc", "site", "config.yaml")
    config.write_text(config.read_text() + f"pam: {{enable: true, service_name: {service.name}}}\n")
    try:
        said = site("check", "site").stderr
    finally:
        service.unlink()
    assert f"{mapping}:1: maps to 'meptest-nobody-here', which is no account of this host" in said
    assert f"{mapping}:1: maps to 'nobody', whose home /nonexistent does not exist" in said
    assert f"{service}:3: module pam_nosuch.so is not installed" in said
    assert "pam_x.so" not in said and "pam_permit.so" not in said


def test_check_asks_the_relay(site: Cli, relay: RelayProcess) -> None:
    """Whether it answers, and whether its link holds the pinned key. Nothing is said of a relay that does."""
    assert "relay" not in site("check", "site").stderr
    registration = site.path("var", "site", "registration.json")
    known = json.loads(registration.read_text())
    registration.write_text(json.dumps({**known, "link_public_key": "11" * 32}))
    assert "does not hold the key that was pinned at registration" in site("check", "site").stderr
    registration.write_text(json.dumps({**known, "link_address": "tcp://127.0.0.1:9"}))
    assert "link tcp://127.0.0.1:9 cannot be reached from here: no connection" in site("check", "site").stderr
    registration.write_text(json.dumps({**known, "relay_url": "http://127.0.0.1:9"}))
    said = site("check", "site").stderr
    assert "relay http://127.0.0.1:9 cannot be reached from here: Connection refused" in said


def test_check_warns_of_names_that_this_host_does_not_know(site: Cli) -> None:
    config, mapping = site.path("etc", "site", "config.yaml"), site.path("etc", "site", "identity_mapping.json")
    if mapping.exists():
        assert f"{mapping}:7: document 0: mappings[0].match: change-me.invalid is" in site("check", "site").stderr
        mapping.write_text(mapping.read_text().replace("change-me\\\\.invalid", "example\\\\.org"))
    assert "site: no problem found" in site("check", "site").stdout
    config.write_text(config.read_text() + "policy: {denied_groups: [no-such-group, root], denied_users: [root]}\n")
    done = site("check", "site")
    assert "policy.denied_groups: this host knows no group 'no-such-group', so it applies to nobody" in done.stderr
    assert "root" not in done.stderr
    assert "no error found; see the warnings" in done.stdout


def test_commands_of_globus_compute_that_mean_nothing_here_say_what_to_do(mep: Cli) -> None:
    for name, what in (
        ("login", "--token-file"),
        ("whoami", "whose token registered it"),
    ):
        assert what in mep(name, "x", "--force", expect=2).stderr
    assert "No such command" in mep("no-such-thing", expect=2).stderr
    assert "login" not in mep("--help").stdout


def test_a_template_directory_that_is_too_large(site: Cli) -> None:
    site.path("etc", "site", "large.j2").write_text("x" * (9 << 20))
    assert "larger than" in site("check", "site", expect=4).stderr


def test_a_start_that_fails_says_why(site: Cli) -> None:
    """The directory of the log exists, and no file can be made there."""
    config = site.path("etc", "site", "config.yaml")
    config.write_text(config.read_text() + "audit_log_path: /proc/nowhere\n")
    said = site("start", "site", "--detach", expect=1).stderr
    assert "did not start" in said
    assert "/proc/nowhere" in said, said
    assert site.json("status", "site", expect=3)["pid"] is None


def test_a_missing_key_says_how_to_get_another(site: Cli) -> None:
    site.path("var", "site", "unseal.key").unlink()
    link = site.path("var", "site", "link.key").read_bytes()
    assert "mep register site --again" in site("start", "site", expect=4).stderr
    site("register", "site", "--again")
    assert site.path("var", "site", "link.key").read_bytes() == link
    site("start", "site", "--detach")
    until("a link that is up", lambda: site.json("status", "site")["link"] == "up")


def test_new_keys(site: Cli) -> None:
    endpoint = site.json("start", "site", "--detach")["endpoint_id"]
    link = site.path("var", "site", "link.key").read_bytes()
    assert "running already" in site("register", "site", "--new-keys", expect=1).stderr
    assert site.path("var", "site", "link.key").read_bytes() == link
    site("stop", "site")
    assert site.json("register", "site", "--new-keys")["endpoint_id"] == endpoint
    assert site.path("var", "site", "link.key").read_bytes() != link
    site("start", "site", "--detach")
    until("a link that is up", lambda: site.json("status", "site")["link"] == "up")


def test_a_pid_file_that_nobody_holds_means_nothing(site: Cli) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        site.path("run", "site").mkdir(parents=True)
        site.path("run", "site", "monitor.pid").write_text(f"{bystander.pid} 1\n")
        assert site.json("stop", "site")["was_running"] is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_monitor_leaves_an_endpoint_that_can_start(site: Cli) -> None:
    pid = site.json("start", "site", "--detach")["pid"]
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    until("an endpoint that has stopped", lambda: site.json("list")[0]["pid"] is None)
    os.close(descriptor)
    assert site.json("start", "site", "--detach")["pid"] != pid


def test_an_existing_globus_compute_directory_works(mep: Cli, relay: RelayProcess, token: str) -> None:
    directory = mep.path("etc", "other")
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    multi_user = "true" if KIND else "false"
    (directory / "config.yaml").write_text(
        f"display_name: From elsewhere\nmulti_user: {multi_user}\namqp_port: 443\n"
        f"identity_mapping_config_path: {directory}/example_identity_mapping_config.json\n"
    )
    (directory / "user_config_template.yaml").write_text("engine:\n  type: ThreadPoolEngine\n")
    mapping = [{"DATA_TYPE": "expression_identity_mapping#1.0.0",
                "mappings": [{"source": "{username}", "match": "(.*)@example.org", "output": "{0}"}]}]  # fmt: skip
    (directory / "example_identity_mapping_config.json").write_text(json.dumps(mapping))
    said = mep("register", "other", "--relay", relay.url)
    assert "amqp_port: does not apply here" in said.stderr
    assert mep.json("start", "other", "--detach")["endpoint_id"]


def test_help_is_there_and_loads_little() -> None:
    code = (
        "import sys\nfrom mep.cli.main import main\nsys.argv = ['mep', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'yaml', 'zmq', 'msgspec', 'cryptography', 'rich', 'jsonschema', 'identity'} & set(sys.modules)\n"
        "print('LOADED', sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert "LOADED []" in done.stdout
    assert "Exit codes:" in done.stdout
    assert "Examples:" in done.stdout


@pytest.mark.parametrize(
    "command", ["configure", "register", "check", "start", "stop", "restart", "list", "status", "delete"]
)
def test_every_command_has_help_with_examples(mep: Cli, command: str) -> None:
    said = mep(command, "--help").stdout
    assert "Examples:" in said
    assert "Exit codes:" in said
    assert ("(status)" in said) == (command == "status")


def test_shell_completion_knows_commands_and_endpoints(site: Cli) -> None:
    def complete(words: str) -> list[str]:
        asked = {"_MEP_COMPLETE": "bash_complete", "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-I", "-c", "import sys; sys.argv = ['mep']\nfrom mep.cli.main import main; main()"],
            env={**site.environment, **asked, "COMP_WORDS": words},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("mep re") == ["register", "reload", "render", "restart"]
    assert complete("mep start si") == ["site"]


def test_shell_completion_of_a_command_for_one_subcommand_knows_its_options(site: Cli) -> None:
    asked = {"_MEP_DIAGNOSTIC_COMPLETE": "bash_complete", "COMP_CWORD": "1", "COMP_WORDS": "mep-diagnostic --log"}
    done = subprocess.run(
        [Path(sys.prefix, "bin", "mep-diagnostic")], env={**site.environment, **asked},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["plain,--log-kb"], done.stderr


def test_the_log_and_the_state_are_private_enough(site: Cli) -> None:
    site("start", "site", "--detach")
    for name in ("endpoint.log", "audit.log"):
        assert not stat.S_IMODE(site.path("var", "site", name).stat().st_mode) & 0o007
    for path in (site.path("var", "site", "link.key"), site.path("var", "site", "unseal.key")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o400


def test_help_config_lists_every_key(mep: Cli) -> None:
    said = mep("configure", "--help-config").stdout
    for key in ("relay_url", "policy.min_uid", "caps.start_timeout_s", "amqp_port"):
        assert key in said
