"""A machine of its own for commands as a page shows them: with their usual paths, ports and accounts.

It is a set of namespaces: /etc, /home, /root and /var are copies that end with it, /run is empty, there is no network
but loopback, and no process of the host. systemd doesn't run in it: a stand-in for systemctl starts the ExecStart of
the project's own units, as their User, and waits for READY=1 where Type=notify promises it. tests/vm runs the units
themselves under a real systemd.
"""

from __future__ import annotations

import pwd
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Self

from tests.support.waiting import until

CHECKOUT = Path(__file__).resolve().parents[2]
_COPIED = ("etc", "home", "root", "var")
_SETUP = """\
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$0"
for each in $1; do
    mkdir -p "$0/$each/up" "$0/$each/work"
    mount -t overlay overlay -o "lowerdir=/$each,upperdir=$0/$each/up,workdir=$0/$each/work" "/$each"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/units /run/commands
ip link set lo up
touch /run/ready
sleep infinity & wait
"""
_SYSTEMCTL = '''\
#!/usr/bin/python3 -I
"""systemctl start|stop|restart|enable [--now]|daemon-reload UNIT: by the unit's own lines, without systemd."""
import os, pwd, signal, socket, subprocess, sys, time

CHECKOUT, PREFIX = @PLACES@
words = [each for each in sys.argv[1:] if not each.startswith("--")]
verb, units = words[0], words[1:]
if "--now" in sys.argv:
    verb = "start"


def option(lines, name):
    found = [line.partition("=")[2].strip() for line in lines if line.startswith(name + "=")]
    return found[-1] if found else ""


def unit_lines(name):
    file = (name.partition("@")[0] + "@" if "@" in name else name) + ".service"
    for directory in ("/etc/systemd/system", CHECKOUT + "/systemd"):
        if os.path.exists(directory + "/" + file):
            with open(directory + "/" + file) as unit:
                return unit.read().replace("%i", name.partition("@")[2]).splitlines()
    sys.exit("Unit " + name + ".service not found.")


def stop(name, lines):
    try:
        with open("/run/units/" + name) as file:
            pid = int(file.read())
        os.kill(pid, signal.SIGTERM)
        while os.path.exists("/proc/%d" % pid) and " Z " not in open("/proc/%d/stat" % pid).read():
            time.sleep(0.1)
    except (OSError, ValueError):
        pass


def start(name, lines):
    user = option(lines, "User")
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    if option(lines, "StateDirectory"):
        directory = "/var/lib/" + option(lines, "StateDirectory")
        os.makedirs(directory, 0o700, exist_ok=True)
        os.chown(directory, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    notify = option(lines, "Type") == "notify"
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if notify:
        path = "/run/units/%s.%d.notify" % (name, os.getpid())
        ready.bind(path)
        environment["NOTIFY_SOCKET"] = path
    argv = option(lines, "ExecStart").replace("/opt/mep/", PREFIX + "/").split()
    log = open("/var/log/" + name + ".log", "ab")
    who = {"user": user, "group": user, "extra_groups": []} if user else {}
    child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                             start_new_session=True, **who)
    with open("/run/units/" + name, "w") as file:
        file.write(str(child.pid))
    ready.settimeout(90)
    while notify and b"READY=1" not in ready.recv(4096):
        pass
    time.sleep(0 if notify else 0.5)
    if child.poll() is not None:
        sys.exit("Job for " + name + ".service failed: " + open("/var/log/" + name + ".log").read())


for unit in units:
    name = unit.removesuffix(".service")
    lines = unit_lines(name)
    if verb in ("stop", "restart"):
        stop(name, lines)
    if verb in ("start", "restart"):
        start(name, lines)
'''

_JOURNALCTL = """\
#!/bin/bash
# journalctl --unit UNIT --output cat --no-pager --quiet and options: of the file that systemctl writes
lines=20000 follow=
while [ $# -gt 0 ]; do
    case $1 in
        --unit) unit=$2; shift ;;
        --lines) lines=$2; shift ;;
        --follow) follow=-f ;;
        --show-cursor) cursor=yes ;;
        --after-cursor) lines=+$(($2 + 1)); shift ;;
    esac
    shift
done
[ -z "$follow" ] || exec tail -n "$lines" -f "/var/log/$unit.log"
tail -n "$lines" "/var/log/$unit.log"
[ -z "${cursor-}" ] || echo "-- cursor: $(wc -l < "/var/log/$unit.log")"
"""


class OwnMachine:
    """The machine, for the length of a `with` block. `directory` is an empty one of the host's."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._outside: subprocess.Popen[bytes] | None = None
        self._inside = 0

    def __enter__(self) -> Self:
        base = self._directory / "copies"
        base.mkdir()
        words = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
        self._outside = subprocess.Popen([*words, "bash", "-c", _SETUP, str(base), " ".join(_COPIED)], cwd="/")
        self._inside = until("the namespaces", self._first_process)
        until("the machine", lambda: self.run("test -e /run/ready", expect=None).returncode == 0)
        self.write("/run/commands/systemctl", _SYSTEMCTL.replace("@PLACES@", repr((str(CHECKOUT), sys.prefix))), 0o755)
        self.write("/run/commands/journalctl", _JOURNALCTL, 0o755)
        self.run("mount --bind /run/commands/journalctl /usr/bin/journalctl")
        return self

    def __exit__(self, *_: object) -> None:
        if self._outside is not None:
            self._outside.kill()
            self._outside.wait(timeout=30)

    def _first_process(self) -> int:
        assert self._outside is not None, "it was started"
        assert self._outside.poll() is None, "the namespaces could not be made"
        return int(Path(f"/proc/{self._outside.pid}/task/{self._outside.pid}/children").read_text().split()[0])

    def words(self, command: str, account: str = "") -> list[str]:
        """Return the words that run a shell's command inside, as root or as `account`."""
        home = self.home(account)
        path = f"/run/commands:{sys.prefix}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        become = ["runuser", "-u", account, "--"] if account else []
        environment = ["env", "-i", f"PATH={path}", "LANG=C.UTF-8", f"HOME={home}"]
        enter = ["nsenter", "--target", str(self._inside), "--mount", "--root", "--wd", "--net", "--pid"]
        return [*enter, *become, *environment, "bash", "-e", "-c", command]

    def home(self, account: str) -> str:
        """Return the home directory of root or of `account`."""
        return f"/home/{account}" if account else pwd.getpwuid(0).pw_dir

    def run(
        self, command: str, account: str = "", *, place: str = "~", expect: int | None = 0, typed: str = "",
        seconds: float = 180,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a shell's command in the directory `place` and check its exit code. `typed` is its standard input."""
        done = subprocess.run(
            self.words(f"cd {place}\n{command}", account), input=typed, capture_output=True, text=True,
            errors="replace", timeout=seconds, check=False, cwd="/",
        )  # fmt: skip
        assert expect in {None, done.returncode}, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def background(self, command: str, account: str = "") -> subprocess.Popen[bytes]:
        """Start a shell's command that goes on."""
        log = (self._directory / "background.log").open("ab")
        return subprocess.Popen(self.words(command, account), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file inside."""
        words = self.words(f"umask 077; cat > {shlex.quote(path)}; chmod {mode:o} {shlex.quote(path)}")
        subprocess.run(words, input=text.encode(), check=True, timeout=60, cwd="/")
