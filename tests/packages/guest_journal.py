"""Run as root inside a booted Debian by test_booted.py: `mep logs` and `mep why` where the log is journald's.

Every check prints one line; the first that fails ends the run with a traceback.
"""

import json
import os
import pathlib
import subprocess
import sys

sys.path.append(os.path.dirname(__file__))
import guest_first_screen as first
import guest_readme  # from tests/vm
import waiting  # from tests/support

passed, run = first.passed, first.run
LOGS = ("mep", "logs", "site")


def asked(*argv, account=""):
    """Run a command, as root or as `account`; return its exit code and what it printed."""
    become = ["runuser", "-u", account, "--"] if account else []
    done = subprocess.run([*become, *argv], capture_output=True, text=True, timeout=120, check=False, cwd="/")
    return done.returncode, done.stdout, done.stderr


def set_up():
    run("useradd --create-home --shell /bin/bash alice")
    run("groupadd ops")
    run("useradd --create-home --groups ops olga")
    first.respect_chroot()
    guest_readme.install(first.DEBS)
    state = pathlib.Path("/var/lib/mep-relay/relay.json")
    waiting.until("the relay answers", lambda: json.loads(state.read_text())["url"], unready=(OSError, ValueError))
    guest_readme.configure(first.DEBS)
    with open("/etc/mep/site/config.yaml", "a") as config:
        config.write("admin_group: ops\n")
    run("mep reload site")


def submitted():
    """Run a task of Alice's; return its id."""
    endpoint = json.loads(pathlib.Path("/run/mep/site/status.json").read_text())["endpoint_id"]
    login = f"MEP_RELAY_URL=http://127.0.0.1:8650 MEP_TOKEN=$(cat {first.DEBS}/token)"
    script = f"""from mep_sdk import Executor
with Executor(endpoint_id="{endpoint}") as executor:
    future = executor.submit(abs, -7)
    assert future.result() == 7
print(future.task_id)"""
    return run(f"{login} /opt/mep-sdk/bin/python -c '{script}'").strip()


def check_logs(task):
    assert not pathlib.Path("/var/lib/mep/site/endpoint.log").exists()
    code, out, err = asked(*LOGS)
    assert code == 0 and "the journal of mep@site" in err, (code, err)
    assert " INFO monitor[" in out and "-- cursor" not in out, out
    code, out, _ = asked(*LOGS, "alice")
    lines = out.splitlines()
    assert any(one.startswith("[site] ") and "start answered" in one for one in lines), out
    assert any(one.startswith("[alice] ") and "joined the relay" in one for one in lines), out
    passed("mep logs reads the journal, whole or about one account")
    code, out, _ = asked("mep", "why", task, "site", "--json")
    story = json.loads(out)
    told = {one["source"] for one in story["story"] if "audit" not in one["text"]}
    assert {"relay", "mapper", "monitor", "keeper", "user endpoint"} <= told and not story["notes"], out
    passed("mep why tells the lines of the journal")


def check_follow():
    """No line is lost between the last lines and those that come."""
    follower = subprocess.Popen([*LOGS, "-n", "100000", "--follow"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen = [follower.stdout.readline()]  # its first lines are out, and it has not begun to follow
    run("mep ban site alice --message first")
    for _ in range(3):
        run("mep drain site; mep undrain site")
    run("mep unban site alice")
    while b"action=unban" not in seen[-1]:
        seen.append(follower.stdout.readline())
        assert seen[-1], b"".join(seen).decode()
    follower.terminate()
    follower.wait()
    orders = [one.partition(b"action=")[2].split()[0] for one in seen if b"action=" in one]
    assert orders == [b"reload", b"ban", *[b"drain", b"undrain"] * 3, b"unban"], orders
    waiting.until("no journalctl is left", lambda: asked("sh", "-c", "grep -lx journalctl /proc/[0-9]*/comm")[0] != 0)
    passed("mep logs --follow shows each order once, and leaves no process")


def check_members():
    code, out, err = asked(*LOGS, account="olga")
    assert code == 1 and "usermod --append --groups systemd-journal" in err, (code, out, err)
    assert not out
    run("usermod --append --groups systemd-journal olga")
    code, out, err = asked(*LOGS, account="olga")
    assert code == 0 and " INFO monitor[" in out, (code, out, err)
    passed("a member of admin_group is told what the journal needs")


def check_own():
    """A person's own endpoint, in the journal of the person's own service manager."""
    run("loginctl enable-linger alice")
    uid = int(run("id -u alice"))
    waiting.until("the person's manager", lambda: os.path.exists(f"/run/user/{uid}/systemd/private"))
    token = pathlib.Path(first.DEBS, "token").read_text().strip()
    alice = ("env", f"XDG_RUNTIME_DIR=/run/user/{uid}", f"MEP_TOKEN={token}", "HOME=/home/alice")
    code, out, err = asked(*alice, "mep", "configure", "laptop", "--relay", "http://127.0.0.1:8650", account="alice")
    assert code == 0, (out, err)
    code, out, err = asked(*alice, "systemctl", "--user", "start", "mep@laptop", account="alice")
    assert code == 0, (out, err)
    assert not pathlib.Path("/home/alice/.mep/laptop/endpoint.log").exists()
    code, out, err = asked("mep", "logs", "laptop", account="alice")
    answers = (code == 0 and " INFO monitor[" in out) or (code == 1 and "log_path" in err)
    assert answers, (code, out, err)
    run("usermod --append --groups systemd-journal alice")
    code, out, err = asked("mep", "logs", "laptop", account="alice")
    assert code == 0 and " INFO monitor[" in out, (code, out, err)
    passed("a person's own endpoint is found in the journal")


def check_file():
    """A file that an endpoint was started with before does not hide the journal."""
    pathlib.Path("/var/lib/mep/site/endpoint.log").write_text("")
    _, out, _ = asked("mep", "why", submitted(), "site", "--json")
    assert {"mapper", "keeper"} <= {one["source"] for one in json.loads(out)["story"]}, out
    passed("an old file of the log does not hide the journal")


def main():
    set_up()
    run("journalctl --flush --sync")
    task = submitted()
    run("journalctl --sync")
    check_logs(task)
    check_follow()
    check_file()
    check_members()
    check_own()


if __name__ == "__main__":
    try:
        main()
    finally:
        first.leave()
