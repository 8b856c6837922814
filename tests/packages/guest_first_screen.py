"""Run as root inside a booted Debian by test_booted.py: the README's first screen, the units, and a purge.

Every check prints one line; the first that fails ends the run with a traceback.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

sys.path.append(os.path.dirname(__file__))
import guest_readme  # from tests/vm
import waiting  # from tests/support

DEBS = "/guest/debs"
PACKAGES = ("mep-common", "mep-endpoint", "mep-relay", "mep-sdk", "mep-postgresql", "mep-s3", "mep-kubernetes")


def passed(what):
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def run(*argv):
    return guest_readme.shell(" ".join(argv), "/")


IN_CHROOT = pathlib.Path("/run/systemd/system/mep-relay.service.d/chroot.conf")


def respect_chroot():
    """Leave PrivateUsers out if the test's host itself is a chroot, in which the kernel makes no user namespace."""
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        IN_CHROOT.parent.mkdir(parents=True)
        IN_CHROOT.write_text("[Service]\nPrivateUsers=no\n")
        run("systemctl daemon-reload")


def check_units():
    IN_CHROOT.unlink(missing_ok=True)
    run("systemctl daemon-reload")
    found = run("systemd-analyze verify --man=no mep-relay.service mep@site.service 2>&1")
    assert not found, found
    for unit, most in (("mep-relay.service", 1.5), ("mep@site.service", 9.0)):
        text = run(f"systemd-analyze security --no-pager {unit}")
        exposure = float(re.search(r"exposure level for \S+: ([\d.]+)", text).group(1))
        assert exposure <= most, text
        open_switches = set(re.findall(r"^✗ (\w+)=", text, re.M))
        explained = pathlib.Path("/usr/lib/systemd/system", unit.replace("site", "")).read_text()
        assert not (silent := [one for one in sorted(open_switches) if one not in explained]), (unit, silent)
        passed(f"{unit}: systemd-analyze security {exposure}, at most {most}")


def check_sdk(endpoint_id):
    """The package's command is its own, and the drop-in wheel runs a script for Globus Compute over the package."""
    assert run("dpkg -S /usr/bin/mep-sdk") == "mep-sdk: /usr/bin/mep-sdk\n"
    assert os.path.realpath("/usr/bin/mep-sdk") == "/opt/mep-sdk/bin/mep-sdk"
    login = f"MEP_RELAY_URL=http://127.0.0.1:8650 MEP_TOKEN=$(cat {DEBS}/token)"
    assert endpoint_id in run(f"{login} mep-sdk endpoints")
    passed("the package mep-sdk brings the command")
    run("python3 -m zipfile -e /guest/drop_in.whl /tmp/drop_in")
    script = f"""from globus_compute_sdk import Executor
with Executor(endpoint_id="{endpoint_id}") as executor: print(executor.submit(abs, -7).result())"""
    answer = run(f"{login} PYTHONPATH=/tmp/drop_in /opt/mep-sdk/bin/python -c '{script}'")
    assert answer == "7\n", answer
    passed("a script for Globus Compute runs by the drop-in wheel")


def check_restart():
    """The monitor stays systemd's: it is watched, logs to the journal, and systemd knows its state."""
    for words in ("", " --all"):
        before = run("systemctl show -P MainPID mep@site")
        told = json.loads(run(f"mep restart site --json{words}"))
        pid = run("systemctl show -P MainPID mep@site").strip()
        assert str(told["pid"]) == pid != before.strip(), (told, before)
        assert run("systemctl is-active mep@site").strip() == "active"
    passed("mep restart leaves a unit's monitor to systemd")


def check_extras():
    run(f"apt-get -y -q install {DEBS}/extras/*.deb")
    code = "import psycopg, boto3, kubernetes; print(psycopg.__file__, boto3.__file__, kubernetes.__file__)"
    assert run(f"/opt/mep/bin/python -I -c '{code}'").count("/opt/mep/extras/") == 3
    passed("the packages of extras are found by the programs")


def check_purge():
    run(f"DEBIAN_FRONTEND=noninteractive apt-get -y -q purge {' '.join(PACKAGES)}")
    paths = ["/opt/mep", "/opt/mep-sdk", "/etc/mep", "/etc/mep-relay.toml"]
    paths += ["/var/lib/mep", "/var/lib/mep-relay", "/run/mep"]
    assert not [one for one in paths if os.path.exists(one)]
    assert not [line for line in pathlib.Path("/etc/passwd").read_text().splitlines() if line.startswith("mep")]
    passed("a purge leaves no file and no account")


def main():
    run("useradd --create-home --shell /bin/bash alice")
    respect_chroot()
    guest_readme.install(DEBS)
    assert pathlib.Path("/etc/mep-relay.toml").exists()  # a purge removes it, see below
    python = run("/opt/mep/bin/python -I --version").strip()
    compiled = list(pathlib.Path("/opt/mep/current/").glob("lib/python*/site-packages/mep/__pycache__/*.pyc"))
    assert compiled and list(pathlib.Path("/opt/mep-sdk").glob("lib/python*/site-packages/mep_sdk/__pycache__/*.pyc"))
    passed(f"installed, over {python}, with byte code")
    state = pathlib.Path("/var/lib/mep-relay/relay.json")
    waiting.until("the relay answers", lambda: json.loads(state.read_text())["url"], unready=(OSError, ValueError))
    guest_readme.configure(DEBS)
    status = json.loads(pathlib.Path("/run/mep/site/status.json").read_text())
    answer = guest_readme.task(DEBS, status["endpoint_id"])
    assert answer == "alice", answer
    passed("three commands and a task")
    check_sdk(status["endpoint_id"])
    run("systemctl reload mep@site mep-relay")
    passed("systemctl reload, on a system without procps")
    check_restart()
    check_units()
    check_extras()
    check_purge()


def leave():
    """Leave the logs to the host's test."""
    subprocess.run("journalctl -b -u 'mep*' --no-pager -o cat -n 200 > /guest/out/services", shell=True, check=False)
    subprocess.run("cat /home/*/.mep/uep/*/*.log > /guest/out/ueps", shell=True, check=False)


if __name__ == "__main__":
    try:
        main()
    finally:
        leave()
