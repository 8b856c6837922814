"""Run as root inside the guest by test_packages.py: the .deb packages, from the first installation to the last purge.

`first` runs before the reboot, `second` after it. Every check prints one line; the first that fails ends the run with a
traceback. The guest's own Python runs this: only what the packages install is tried.
"""

import contextlib
import functools
import json
import os
import pathlib
import pwd
import re
import subprocess
import sys
import time

NAME, UNIT, RELAY = "site", "mep@site.service", "mep-relay.service"
STATE = pathlib.Path("/var/lib/mep-relay")
GUEST = pathlib.Path("/guest")
COMMANDS = (GUEST / "commands").read_text().split()
OUT = GUEST / "out"
PEOPLE = ("alice", "bob")
WAIT_S = 600
NOT_COMPARED = re.compile(
    r"/(proc|sys|dev|run|tmp|guest|home|root|lost\+found|var/(log|cache|tmp|lib/(dpkg|apt|systemd|logrotate|private)))"
    r"(/|$)|/etc/(\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-|machine-id)$|/__pycache__(/|$)"
)

sys.path.append(os.path.dirname(__file__))
import guest_readme  # noqa: E402  # from the same directory
import waiting  # noqa: E402  # tests/support/waiting.py, which test_packages.py puts beside this file

until = functools.partial(waiting.until, seconds=WAIT_S, unready=(OSError, ValueError, KeyError, IndexError))


def run(*argv, expect=0, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, **options)
    if expect is not None and done.returncode != expect:
        raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def passed(what):
    line = f"{time.monotonic():.1f} PASSED {what}"
    print(line, flush=True)
    with open("/dev/console", "w") as console:  # for the person who watches a long run
        print(line, file=console)


def packages(number):
    return sorted(map(str, (GUEST / number).glob("*.deb")))


def apt(*words, expect=0):
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return run("apt-get", "-y", "-q", "--no-install-recommends", *words, expect=expect, env=environment)


def status():
    return json.loads(pathlib.Path(f"/run/mep/{NAME}/status.json").read_text())


def records():
    return {
        one["uep_id"]: one["uep_pid"]
        for one in (json.loads(path.read_text()) for path in pathlib.Path(f"/run/mep/{NAME}/keepers").rglob("*.json"))
    }


def shown(unit, key):
    return run("systemctl", "show", "-P", key, unit).strip()


def link_is_up():
    return status()["link_state"] == "up" and status()["state"] == "up"


PATIENCE = pathlib.Path("/etc/systemd/system/mep@.service.d/patience.conf")
"""A guest's processor is emulated where the host has no KVM, and the host may be busy."""


def be_patient():
    PATIENCE.parent.mkdir(parents=True)
    PATIENCE.write_text("[Service]\nTimeoutStartSec=600s\nTimeoutStopSec=600s\nWatchdogSec=600s\n")
    run("systemctl", "daemon-reload")


def everything():
    """Return every path of the system that a package could leave, and every account and group."""
    found = set()
    for top, directories, files in os.walk("/"):
        directories[:] = [one for one in directories if not NOT_COMPARED.search(os.path.join(top, one))]
        paths = (os.path.join(top, one) for one in [*directories, *files])
        found.update(path for path in paths if not NOT_COMPARED.search(path))
    for name in ("passwd", "group", "shadow", "gshadow"):
        lines = pathlib.Path("/etc", name).read_text().splitlines()
        found.update(f"{name}: {line.split(':')[0]}" for line in lines)
    return found


# --- people ----------------------------------------------------------------------------------------------


class Load:
    """A script of people's that submits tasks until it is told to stop, run from the package mep-sdk as one of them."""

    def __init__(self, endpoint_id, tokens, label):
        self._stop = pathlib.Path(f"/tmp/stop-{label}")
        self._out = pathlib.Path(f"/tmp/out-{label}")
        self._out.write_text("")
        self._out.chmod(0o666)
        self._log = OUT / f"load-{label}"
        self._log.write_text("")
        words = [endpoint_id, str(self._stop), str(self._out), json.dumps(tokens)]
        argv = ["runuser", "-u", "alice", "--", "/opt/mep-sdk/bin/python", "/guest/guest_load.py", *words]
        self._process = subprocess.Popen(argv, stdout=self._log.open("a"), stderr=subprocess.STDOUT)
        self._people = tuple(tokens)
        self.more()

    def ended(self):
        """Return how many tasks of the person with the fewest have ended."""
        if self._process.poll() is not None:
            raise AssertionError(f"the load ended: {self._log.read_text()}")
        lines = [json.loads(line)["person"] for line in self._out.read_text().splitlines()]
        return min(lines.count(person) for person in self._people)

    def more(self):
        """Wait until further tasks of each person have ended."""
        now = self.ended()
        until("more tasks are back", lambda: self.ended() >= now + 2, details=self._log.read_text)

    def finish(self):
        """Return how many tasks ended. Each one ran once, as its person's account, with its own result."""
        self._stop.touch()
        code = self._process.wait(WAIT_S)
        assert code == 0, self._log.read_text()
        lines = [json.loads(line) for line in self._out.read_text().splitlines()]
        for person in PEOPLE:
            own = [line for line in lines if line["person"] == person]
            assert sorted(line["number"] for line in own) == list(range(len(own))), own
            assert {tuple(line["result"]) for line in own} == {(person, line["number"]) for line in own}, own
        return len(lines)


# --- the first boot ----------------------------------------------------------------------------------------


def install():
    guest_readme.install("/guest/1")
    passed("apt-get installs the four packages, without a network")
    for name in COMMANDS:
        home = "/opt/mep-sdk" if name == "mep-sdk" else "/opt/mep/releases/[^/]+"
        assert re.fullmatch(f"{home}/bin/{name}", os.path.realpath(f"/usr/bin/{name}")), name
        first = pathlib.Path(f"/usr/bin/{name}").read_bytes().decode().splitlines()[0]
        assert re.fullmatch(f"#!{home}/bin/python -I", first), first
    assert run("mep", "--version", env={"PATH": "/usr/bin:/bin", "PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
    for name in ("mep-common", "mep-endpoint", "mep-relay", "mep-sdk"):
        assert not run("dpkg", "-V", name), name
    listed = run("dpkg", "-L", "mep-common", "mep-endpoint", "mep-relay", "mep-sdk").split()
    on_path = {path for path in listed if re.match(r"(/usr)?/s?bin/.|/usr/local/", path)}
    assert on_path == {f"/usr/bin/{name}" for name in COMMANDS}, on_path
    passed("the commands start isolated, and no other is on anybody's PATH")
    conffiles = run("dpkg-query", "-W", "-f", "${Conffiles}", "mep-endpoint").split()
    assert {"/etc/logrotate.d/mep", "/etc/pam.d/mep"} <= set(conffiles), conffiles
    conffiles = run("dpkg-query", "-W", "-f", "${Conffiles}", "mep-relay").split()
    assert "/etc/mep-relay.toml" in conffiles, conffiles
    for name in ("mep", "mep-idmap", "mep-relay", "mep-register"):
        assert pwd.getpwnam(name).pw_shell == "/usr/sbin/nologin"
    assert (shown(RELAY, "ActiveState"), shown(RELAY, "UnitFileState")) == ("active", "disabled")
    passed("accounts and conffiles are there, and the relay that the README starts runs")


def units():
    done = run("systemd-analyze", "verify", "--man=no", RELAY, UNIT)
    assert not done, done
    text = run("systemd-analyze", "security", "--no-pager", RELAY)
    exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", text).group(1))
    (OUT / "security-relay").write_text(text)
    assert exposure <= 1.5, text
    text = run("systemd-analyze", "security", "--no-pager", UNIT)
    (OUT / "security-endpoint").write_text(text)
    passed(f"systemd-analyze: no finding in the units, exposure of the relay {exposure}")


def add_person(name):
    return json.loads(run("mep-relay", "user", "add", f"{name}@example.edu", "--json"))["token"]


def configure():
    be_patient()
    url = until("the relay answers", lambda: json.loads((STATE / "relay.json").read_text())["url"])
    guest_readme.configure("/guest/1")
    assert status()["state"] == "up"
    endpoint_id = status()["endpoint_id"]
    assert guest_readme.task("/guest/1", endpoint_id) == "alice"
    passed("README's three commands and its task, as they stand")
    with pathlib.Path(f"/etc/mep/{NAME}/config.yaml").open("a") as config:
        config.write("\ncaps: {start_timeout_s: 300}\n")
    run("systemctl", "reload", UNIT)
    tokens = {"alice": (GUEST / "1/token").read_text().strip(), "bob": add_person("bob")}
    text = run("mep", "enable-on-boot", NAME)
    assert "systemctl start mep@site" in text, text
    assert shown(UNIT, "UnitFileState") == "enabled"
    run("mep", "disable-on-boot", NAME)
    assert shown(UNIT, "UnitFileState") == "disabled"
    run("globus-compute-endpoint", "enable-on-boot", NAME)
    run("systemctl", "enable", RELAY)
    assert shown(UNIT, "UnitFileState") == shown(RELAY, "UnitFileState") == "enabled"
    passed("enable-on-boot and disable-on-boot")
    return endpoint_id, url, tokens


def restarts(load):
    before, pid = records(), shown(UNIT, "MainPID")
    assert len(before) == len(PEOPLE), before
    run("systemctl", "restart", UNIT)
    assert shown(UNIT, "MainPID") != pid and records() == before
    run("systemctl", "restart", RELAY)
    load.more()
    assert records() == before
    passed("a restart of the endpoint and of the relay under load: the user endpoints run on")


def release_of(pid):
    text = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() + pathlib.Path(f"/proc/{pid}/maps").read_bytes()
    return sorted({one.decode() for one in re.findall(rb"/opt/mep/releases/([^/\0]+)/", text)})


def releases():
    return sorted(path.name for path in pathlib.Path("/opt/mep/releases").iterdir())


def on_database(statement):
    """Run one statement on the relay's database, as the relay's account."""
    code = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchone() or ())"
    argv = ("runuser", "-u", "mep-relay", "--", "/usr/bin/python3", "-c", code, str(STATE / "relay.db"), statement)
    return run(*argv).split()


def upgrade(load):
    before, pid, relay_pid = records(), shown(UNIT, "MainPID"), shown(RELAY, "MainPID")
    (old,) = releases()
    config = pathlib.Path(f"/etc/mep/{NAME}/config.yaml")
    good = config.read_text()
    config.write_text(good + "\nno_such_key: 1\n")
    (version,) = on_database("PRAGMA user_version")
    on_database("PRAGMA user_version = 999")
    text = apt("install", *packages("2"), expect=100)
    assert "no_such_key" in text and f"can't start: mep-relay {NAME}. The release that runs stays" in text, text
    assert os.readlink("/opt/mep/current") == f"releases/{old}"
    assert (shown(UNIT, "MainPID"), shown(RELAY, "MainPID"), records()) == (pid, relay_pid, before)
    load.more()
    passed("an upgrade whose check fails restarts nothing: the old release runs on")
    config.write_text(good)
    on_database(f"PRAGMA user_version = {version}")
    run("dpkg", "--configure", "-a")
    new = os.readlink("/opt/mep/current").removeprefix("releases/")
    assert new != old and releases() == sorted([old, new]), (new, releases())
    main_pid = shown(UNIT, "MainPID")
    assert main_pid != pid and shown(RELAY, "MainPID") != relay_pid
    assert release_of(main_pid) == release_of(shown(RELAY, "MainPID")) == [new]
    assert records() == before and all(release_of(one) == [old] for one in before.values())
    load.more()
    passed("corrected, it restarts relay and monitor; user endpoints keep their release")
    return old


def downgrade(load, old):
    apt("install", "--allow-downgrades", *packages("1"))
    assert release_of(shown(UNIT, "MainPID")) == [old]
    load.more()
    assert releases() == [old], releases()
    passed("a downgrade restarts both; the release that none used is removed")


def own_endpoint(url, token):
    """A person's own endpoint, by the person's own service manager."""
    run("loginctl", "enable-linger", "alice")
    uid = pwd.getpwnam("alice").pw_uid
    until("the person's service manager", lambda: os.path.exists(f"/run/user/{uid}/systemd/private"))
    alice = ("runuser", "-l", "alice", "-c")
    run(*alice, f"MEP_TOKEN={token} mep configure laptop --relay {url}")
    text = run(*alice, "mep enable-on-boot laptop")
    assert "systemctl --user start mep@laptop" in text and "linger" not in text, text
    passed("a person's enable-on-boot, by the person's own service manager")


def first():
    for account in PEOPLE:
        run("useradd", "--create-home", "--shell", "/bin/bash", account)
    os.makedirs("/var/cache/apt/archives/partial", exist_ok=True)
    (GUEST / "before").write_text(json.dumps(sorted(everything())))
    install()
    units()
    endpoint_id, url, tokens = configure()
    load = Load(endpoint_id, tokens, "changes")
    restarts(load)
    old = upgrade(load)
    downgrade(load, old)
    passed(f"{load.finish()} tasks of two people during all that: each ran once, none was lost")
    own_endpoint(url, tokens["alice"])
    (GUEST / "facts").write_text(json.dumps([endpoint_id, tokens]))


def using_the_package():
    """Return the processes with a file of the package in their command line or memory."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"/opt/mep" in (entry / "cmdline").read_bytes() + (entry / "maps").read_bytes():
                found.append((entry.name, (entry / "cmdline").read_bytes()))
    return found


# --- the second boot -----------------------------------------------------------------------------------------


def second():
    endpoint_id, tokens = json.loads((GUEST / "facts").read_text())
    until("the endpoint is up", link_is_up, details=lambda: run("systemctl", "status", UNIT, expect=None))
    assert shown(RELAY, "ActiveState") == "active"
    Load(endpoint_id, tokens, "reboot").finish()
    passed("after a reboot relay and endpoint are up, and people's tasks run")
    own = pathlib.Path("/home/alice/.mep/laptop/run/status.json")
    until("the person's own endpoint is up", lambda: json.loads(own.read_text())["state"] == "up")
    passed("and so is the person's own endpoint")
    run("runuser", "-l", "alice", "-c", "mep disable-on-boot laptop")
    run("runuser", "-l", "alice", "-c", "mep stop laptop")
    run("loginctl", "disable-linger", "alice")
    pids = records()
    assert pids
    PATIENCE.unlink()
    PATIENCE.parent.rmdir()
    apt("purge", "mep-endpoint", "mep-relay", "mep-common", "mep-sdk", "mep-postgresql")
    for uep_pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(uep_pid, 0)
            raise AssertionError(f"user endpoint {uep_pid} lives on")
    assert not (found := using_the_package()), found
    left = sorted(everything() - set(json.loads((GUEST / "before").read_text())))
    assert not left, left
    listed = run("systemctl", "list-unit-files", "--no-legend", "--no-pager", "mep*.service", expect=None)
    assert not [line for line in listed.splitlines() if line.startswith("mep") and "mep-guest" not in line], listed
    passed("purge leaves no file, account, process or unit")


try:
    {"first": first, "second": second}[sys.argv[1]]()
finally:
    sys.stdout.flush()
    subprocess.run("journalctl -b --no-pager -o cat -n 400 > /guest/out/journal", shell=True, check=False)
    subprocess.run("cat /home/*/.mep/uep/*/*.log > /guest/out/ueps", shell=True, check=False)
