"""Run as root inside a booted Debian by test_ansible.py: the playbook on this machine itself, twice, and a task.

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
RELAY = "http://127.0.0.1:8650"
IN_CHROOT = pathlib.Path("/run/systemd/system/mep-relay.service.d/chroot.conf")


def passed(what):
    print(f"{time.monotonic():.1f} PASSED {what}", flush=True)


def run(script):
    return guest_readme.shell(script, DEBS)


def play():
    """Run the playbook; return how many of its tasks changed something."""
    text = run("ansible-playbook -i /guest/inventory -c local -e @/guest/variables.json /guest/playbook.yml")
    found = re.search(r"changed=(\d+) +unreachable=0 +failed=0", text)
    assert found, text
    return int(found.group(1))


def main():
    run("useradd --create-home --shell /bin/bash alice")
    if subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False).returncode:
        IN_CHROOT.parent.mkdir(parents=True)  # the test's host is a chroot: no user namespaces
        IN_CHROOT.write_text("[Service]\nPrivateUsers=no\n")
    run("apt-get install -y -q --no-install-recommends ./mep-common_*.deb ./mep-relay_*.deb ./mep-sdk_*.deb")
    run("systemctl start mep-relay")
    state = pathlib.Path("/var/lib/mep-relay/relay.json")
    waiting.until("the relay answers", lambda: json.loads(state.read_text())["url"], unready=(OSError, ValueError))
    token = json.loads(run("mep-relay user add alice@example.edu --json"))["token"]
    packages = sorted(map(str, [*pathlib.Path(DEBS).glob("mep-common_*"), *pathlib.Path(DEBS).glob("mep-endpoint_*")]))
    variables = {"mep_packages": packages, "mep_domain": "example.edu", "mep_relay": RELAY, "mep_token": token}
    pathlib.Path("/guest/variables.json").write_text(json.dumps(variables))
    pathlib.Path("/guest/inventory").write_text("[endpoints]\nlocalhost\n")
    assert play() == 3
    passed("the playbook installed, configured and started an endpoint")
    assert run("systemctl is-active mep@site; systemctl is-enabled mep@site").split() == ["active", "enabled"]
    pathlib.Path(DEBS, "token").write_text(token)
    endpoint_id = json.loads(pathlib.Path("/run/mep/site/status.json").read_text())["endpoint_id"]
    assert guest_readme.task(DEBS, endpoint_id) == "alice"
    passed("a task runs there")
    assert play() == 0
    passed("a second run changes nothing")


try:
    main()
finally:
    subprocess.run("journalctl -b -u 'mep*' --no-pager -o cat -n 200 > /guest/out/services", shell=True, check=False)
