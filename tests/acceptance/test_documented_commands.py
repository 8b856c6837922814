"""The console blocks of the administrator's pages, run in order on a machine of its own.

A block that can't run here is marked in the page's source by a comment before it, with the reason:
`<!-- not run: REASON -->`. test_what_is_not_run_is_marked_and_known lists them. Placeholders in capital letters are
filled in. Commands that stay in the foreground run until they have done what the page says.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mep_wire.text import printable
from tests.support.certificates import Authority
from tests.support.globus_directory import globus_directory
from tests.support.own_machine import OwnMachine
from tests.support.waiting import until

pytestmark = pytest.mark.root
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("first-hour", "quickstart", "operations", "moving", "troubleshooting")
NAMES = ("relay.example.edu", "relay.example.org")
_MARK = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)
_FOREGROUND = ("mep-relay serve", "mep top")


@dataclass
class Block:
    """A console block: its section and lines; `reason` says why it isn't run."""

    page: str
    section: str
    lines: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def commands(self) -> list[str]:
        """The commands, without comments at their ends."""
        plain = [line.split("  #")[0].rstrip() for line in self.lines]
        return [line for line in plain if line and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page that are indented by four spaces, outside of lists and fences."""
    text = re.sub(r"^```.*?^```$", "", (DOCS / f"{page}.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    found: list[Block] = []
    section, reason, before = "", "", ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.lstrip("# ")
        elif mark := _MARK.fullmatch(line):
            reason = mark[1]
        elif line.startswith("    "):
            if not before:
                found.append(Block(page, section, reason=reason))
                reason = ""
            found[-1].lines.append(line[4:])
        before = line if line.startswith("    ") else ""
    return found


def test_what_is_not_run_is_marked_and_known(capsys: pytest.CaptureFixture[str]) -> None:
    left = {block.commands[0]: block.reason for page in PAGES for block in blocks(page) if block.reason}
    with capsys.disabled():
        print("\ncommands of the pages that are not run:")
        for command, reason in left.items():
            print(printable(f"    {command}: {reason}"))
    assert sorted(left) == [
        "apt-get install ./mep-common_*.deb ./mep-endpoint_*.deb ./mep-relay_*.deb ./mep-sdk_*.deb",
        "firewall-cmd --permanent --add-service=https --add-port=8651/tcp",
        "pip uninstall globus-compute-sdk",
    ]


class Walk:
    """One page on one machine."""

    def __init__(self, machine: OwnMachine, directory: Path) -> None:
        self.machine, self._directory = machine, directory
        self.said = self.rotated = ""
        self.account_of: dict[str, str] = {}
        """The account that runs the blocks of a section, where it is not root."""
        self.before: dict[str, Callable[[], object]] = {}
        """What happens before the block that begins with this command."""
        self.values: dict[str, Callable[[], str]] = {"ENDPOINT_ID": self.endpoint_id}

    def page(self, name: str) -> None:
        """Run the page's blocks."""
        for block in blocks(name):
            if not block.reason:
                for first, action in self.before.items():
                    if block.commands[0].startswith(first):
                        action()
                self._run(block)

    def _run(self, block: Block) -> None:
        account = self.account_of.get(block.section, "")
        for command in block.commands:
            for word, value in self.values.items():
                if word in command:
                    command = command.replace(word, value())
            if command.startswith(_FOREGROUND):
                self._foreground(command, account)
            else:
                place = str(DOCS.parent) if re.search(r" (?:systemd|etc)/", command) else "~"
                typed = "y\n" if command.startswith("mep delete") else ""
                self.said = self.machine.run(command, account, place=place, typed=typed).stdout
                self.rotated = self.said if command.startswith("mep-relay key rotate") else self.rotated

    def _foreground(self, command: str, account: str) -> None:
        """Let it begin; a relay stays until another one is to serve."""
        if command.startswith("mep top"):
            log = self._directory / "top.txt"
            with log.open("wb") as output:
                process = subprocess.Popen(self.machine.words(command, account), stdout=output, cwd="/")
                until("the screen", lambda: "endpoint id" in log.read_text())
                process.kill()
                process.wait(timeout=30)
            return
        self.machine.run("pkill -f 'mep-relay serve' && sleep 1; rm -f /var/lib/mep-relay/relay.json", expect=None)
        self.machine.background(command, account)
        there = "test -e /var/lib/mep-relay/relay.json"
        until("the relay", lambda: self.machine.run(there, expect=None).returncode == 0)

    def endpoint_id(self) -> str:
        """Return the id of the endpoint `site`."""
        done = self.machine.run("mep status site --json", expect=None)
        return str(json.loads(done.stdout)["endpoint_id"])

    def script(self, name: str, number: int, account: str = "") -> str:
        """Run the page's Python block and return what it prints."""
        text = re.findall(r"^```python\n(.*?)^```", (DOCS / f"{name}.md").read_text(), re.DOTALL | re.MULTILINE)[number]
        place = f"{self.machine.home(account)}/script.py"
        self.machine.write(place, text.replace("ENDPOINT_ID", self.endpoint_id()))
        return self.machine.run(f"python {place}", account).stdout

    def proxy(self) -> None:
        """Put nginx before the relay, by the example of docs/operations.md, with a certificate that is trusted here."""
        page = (DOCS / "operations.md").read_text()
        (text,) = re.findall(r"```nginx\n(map.*?)```", page, re.DOTALL)
        authority = Authority(self._directory)
        authority.server(*NAMES)
        (pair,) = self._directory.glob("authority-*.pem")
        machine = self.machine
        machine.run("echo 127.0.0.1 " + " ".join(NAMES) + " >> /etc/hosts")
        for place in ("/etc/ssl/relay.example.edu.crt", "/etc/ssl/private/relay.example.edu.key"):
            machine.write(place, pair.read_text())
        machine.run(f"cat {authority.path} >> /etc/ssl/certs/ca-certificates.crt")
        machine.write("/etc/nginx/conf.d/mep-relay.conf", text.replace(NAMES[0] + ";", " ".join(NAMES) + ";"))
        machine.run("rm -f /etc/nginx/sites-enabled/*; mkdir -p /var/log/nginx /var/lib/nginx; nginx -t; nginx")
        machine.write("/etc/mep-relay.toml", 'trusted_proxies = ["127.0.0.1"]\n')


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    with OwnMachine(tmp_path) as machine:
        machine.run("useradd -m -s /bin/bash alice; useradd -m -s /bin/bash mallory")
        yield Walk(machine, tmp_path)


def test_the_first_hour(walk: Walk) -> None:
    walk.page("first-hour")
    assert walk.script("first-hour", 0) == "alice\n"
    boot = walk.machine.run(f"mep enable-on-boot {walk.endpoint_id()}").stdout
    assert boot.endswith("systemctl start mep@site.service\n")  # the unit's name, whatever was typed
    logs = walk.machine.run("mep logs site alice").stdout.splitlines()  # the unit's own lines are in the journal
    assert any(line.startswith("[site] ") and "start answered" in line for line in logs)
    assert any(line.startswith("[alice] ") and "joined the relay" in line for line in logs)
    assert "INFO monitor[" in walk.machine.run("mep logs site -n 3").stdout
    follower = "timeout 5 mep logs site -f -n 0 & sleep 2; mep reload site > /dev/null; wait"
    assert "configuration" in walk.machine.run(follower, expect=None).stdout


def test_the_quickstart(walk: Walk) -> None:
    machine = walk.machine
    walk.proxy()
    walk.account_of = {"A person's script": "alice", "An endpoint of your own": "alice"}

    def tokens() -> None:
        machine.run("(umask 077; mep-relay user token admin@example.edu > ~/token)")
        machine.write("/home/alice/token", machine.run("mep-relay user token alice@example.edu").stdout)
        machine.run("chown alice: /home/alice/token; chmod 600 /home/alice/token")

    def processes_of_the_foreground() -> None:
        machine.run("mep stop site; pkill -f 'mep-relay serve'; sleep 2", expect=None)

    def the_script() -> None:
        lines = 'relay_url = "https://relay.example.edu"\ntoken = "$(cat ~/token)"'
        machine.run(f"cat > ~/.mep/client.toml <<END\n{lines}\nEND", "alice")

    walk.before = {
        "mep configure site": tokens, "systemctl enable --now": processes_of_the_foreground,
        "mep configure laptop": the_script,
    }  # fmt: skip
    walk.page("quickstart")
    assert "link" in walk.said
    assert machine.run("mep status laptop", "alice").returncode == 0


def test_operations(walk: Walk) -> None:
    machine = walk.machine
    walk.proxy()
    machine.run("systemctl start mep-relay; (umask 077; mep-relay user add admin@example.edu > ~/token)")
    for name in ("site", "other"):  # the second one is not started, so that a task for it waits
        words = "--multi-user --domain example.edu --relay https://relay.example.edu --token-file ~/token"
        machine.run(f"mep configure {name} {words}")
    machine.run("systemctl start mep@site; mep-relay user add alice@example.edu > ~/alice")
    task = """
import os, sys
from mep_sdk import Client, Executor
client = Client(relay_url="https://relay.example.edu", token=open(sys.argv[2]).read().strip())
executor = Executor(endpoint_id=sys.argv[1], client=client)
future = executor.submit(os.getuid)
executor.flush()
print(future.task_id, flush=True)
os._exit(0)
"""
    machine.write(f"{machine.home('')}/task.py", task)

    def waiting_task() -> str:
        machine.run("mep-relay user add mallory@example.edu > ~/mallory", expect=None)
        other = json.loads(machine.run("mep status other --json", expect=None).stdout)["endpoint_id"]
        return machine.run(f"python ~/task.py {other} ~/mallory").stdout.strip()

    ids: list[str] = []
    walk.before = {
        "mep-relay user token mallory": lambda: ids.append(waiting_task()),
        "mep-relay user token alice": lambda: machine.run("mep unban site mallory"),
    }

    walk.values |= {
        "TASK_ID": lambda: ids[0],
        "SHA256:...": lambda: re.findall(r"SHA256:[A-Za-z0-9+/=]+", walk.rotated)[-1],
    }
    walk.page("operations")


def test_moving(walk: Walk, tmp_path: Path) -> None:
    machine = walk.machine
    walk.proxy()
    machine.run("systemctl start mep-relay; (umask 077; mep-relay user add admin@example.edu > ~/token)")
    mapping = f"{machine.home('')}/.globus_compute/site/m.json"
    theirs = globus_directory(tmp_path / "site", {"identity_mapping_config_path": mapping})
    (theirs / "example_identity_mapping_config.json").rename(theirs / "m.json")
    machine.run(f"mkdir -m 700 ~/.globus_compute; cp -rp {theirs} ~/.globus_compute/site")
    walk.page("moving")
    assert machine.run("mep status site").returncode == 0
