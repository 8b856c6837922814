"""Run as root inside the guest by test_units.py: accounts, directories and the relay by the shipped systemd files.

Every check prints one line; the first that fails ends the run with a traceback.
"""

import functools
import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import time
import urllib.request

BIN = "/opt/mep/bin"
STATE = pathlib.Path("/var/lib/mep-relay")
WAIT_S = 180

sys.path.append(os.path.dirname(__file__))
import waiting  # noqa: E402  # tests/support/waiting.py, which test_units.py puts beside this file


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S)
    if done.returncode:
        raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def journal():
    return run("journalctl", "-u", "mep-relay", "--no-pager")


until = functools.partial(waiting.until, seconds=WAIT_S, unready=(OSError, ValueError, KeyError), details=journal)


def passed(what):
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def shown(key):
    return run("systemctl", "show", "-P", key, "mep-relay").strip()


def answers(other_than=0):
    """Return the relay's address once another process than that one serves."""
    found = json.loads((STATE / "relay.json").read_text())
    with urllib.request.urlopen(f"{found['url']}/openapi.json", timeout=10) as answer:
        return found["url"] if answer.status == 200 and found["pid"] != other_than else ""


def accounts_and_directories():
    run("systemd-sysusers")
    for name in ("mep", "mep-idmap", "mep-relay"):
        entry = pwd.getpwnam(name)
        assert entry.pw_shell == "/usr/sbin/nologin", entry
        assert 0 < entry.pw_uid < 1000, entry
    passed("the accounts are made")
    run("systemd-tmpfiles", "--create", "mep.conf")
    for path in ("/etc/mep", "/var/lib/mep", "/run/mep"):
        info = os.stat(path)
        assert (info.st_uid, info.st_mode & 0o777) == (0, 0o755), path
    passed("the directories are made, root's")


def the_units():
    units = ["/etc/systemd/system/mep-relay.service", "/etc/systemd/system/mep@.service"]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, ""), done
    passed("systemd-analyze finds nothing in the units")


def the_relay():
    run("systemctl", "start", "mep-relay")
    url = until("the relay answers", answers)
    pid = int(shown("MainPID"))
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{pwd.getpwnam('mep-relay').pw_uid}\t" in status
    assert "NoNewPrivs:\t1" in status and "CapBnd:\t0000000000000000" in status, status
    assert os.stat(STATE).st_mode & 0o777 == 0o700
    passed(f"the relay serves {url}, with no privilege")
    token = json.loads(run(f"{BIN}/mep-relay", "user", "add", "alice@example.edu", "--json"))["token"]
    request = urllib.request.Request(f"{url}/v2/endpoints", headers={"Authorization": f"Bearer {token}"})
    until("the account is known", lambda: urllib.request.urlopen(request, timeout=10).status == 200)
    passed("an account that root adds meanwhile is known")
    assert "ReadWrite" not in run("systemctl", "cat", "mep-relay")
    seen = os.listdir(f"/proc/{pid}/root/home")
    assert seen == [], seen
    passed("it sees nobody's home directory")
    os.kill(pid, signal.SIGKILL)
    until("it is started again", lambda: answers(other_than=pid))
    passed("it is started again when it was killed")
    run("systemctl", "stop", "mep-relay")
    assert shown("Result") == "success" and not (STATE / "relay.json").exists()
    passed("it ends in good order")


run("systemctl", "daemon-reload")
accounts_and_directories()
the_units()
the_relay()
