"""A relay, endpoints and people on one machine, in a directory of their own on free loopback ports.

As root the endpoints are multi-user ones. With `run_as`, or if a user other than root runs this, everything
belongs to that one person, as on a laptop.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sitekit import accounts
from sitekit.accounts import Account
from sitekit.daemon import BIN, Daemon, command, tail
from sitekit.endpoint import Endpoint
from sitekit.errors import NameTaken
from sitekit.ledger import Ledger

ADMIN = "admin@example.edu"


@dataclass(frozen=True)
class Person:
    """A person with an account at the relay, and the settings that the SDK needs to act for them."""

    username: str
    token: str
    relay_url: str


class Relay:
    """A relay with its state in the site's directory. Keeps its ports over restarts."""

    def __init__(self, state: Path, log: Path, ledger: Ledger, run_as: Account | None) -> None:
        self.state = state
        self._log, self._ledger, self._run_as = log, ledger, run_as
        self._ports = (0, 0)
        self.url = ""
        self.env: dict[str, str] = {}
        """Variables for the process that serves."""
        self._daemon: Daemon | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self.state / "relay.json").unlink(missing_ok=True)
        http, link = self._ports
        self._daemon = Daemon(
            *(BIN / "mep-relay", "serve", "--state", self.state),
            *("--port", str(http), "--link-port", str(link)),
            env=self.env,
            log=self._log,
            ledger=self._ledger,
            run_as=self._run_as,
        )
        found = self._daemon.wait_for("relay.json", self._addresses)
        self.url = str(found["url"])
        self._ports = (_port(found["url"]), _port(found["link_address"]))

    def _addresses(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads((self.state / "relay.json").read_text())
        except (OSError, ValueError):
            return None
        return found

    @property
    def pid(self) -> int:
        """The pid of the process that serves."""
        return int(json.loads((self.state / "relay.json").read_text())["pid"])

    def kill(self) -> None:
        """End it as a crash would."""
        if self._daemon is not None:
            self._daemon.kill()

    def stop(self) -> None:
        """End it in good order."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None

    def add_person(self, username: str) -> Person:
        """Add a person and return them with their token."""
        said = json.loads(self.run("user", "add", username, "--json"))
        return Person(username, said["token"], self.url)

    def run(self, *words: str) -> str:
        """Run a subcommand of mep-relay on this relay's state; returns what it printed."""
        return command(BIN / "mep-relay", *words, "--state", self.state, env={}, run_as=self._run_as)


def _port(address: str) -> int:
    return int(address.rstrip("/").rpartition(":")[2])


class Site:
    """Everything of one run, removed by `close` or at the end of a `with` block."""

    def __init__(self, label: str, run_as: Account | None = None) -> None:
        self.ledger = Ledger()
        self.label = label
        self.run_as = run_as
        self.root = Path(tempfile.gettempdir(), f"{label}-{os.getpid()}-{secrets.token_hex(3)}")
        self.ledger.path(self.root)
        self._stack = ExitStack()
        self._stack.callback(self.ledger.clear)
        self.owner = run_as or accounts.mine()
        self.multi_user = self.owner.uid == 0
        self._make_directories()
        self.relay = Relay(self.root / "relay", self.root / "logs" / "relay.log", self.ledger, run_as)
        self._stack.callback(self.relay.stop)

    def _make_directories(self) -> None:
        for name in ("", "etc", "var", "run", "home", "uep", "logs", "relay"):
            path = self.root / name
            path.mkdir(mode=0o755)
            path.chmod(0o755)
            if self.run_as is not None:
                os.chown(path, self.run_as.uid, self.run_as.gid)
        (self.root / "relay").chmod(0o700)
        if self.multi_user:
            shutil.chown(self.root / "relay", "mep-relay", "mep-relay")

    @property
    def env(self) -> dict[str, str]:
        """The variables that keep an endpoint's files inside this site's directory."""
        return {"MEP_ETC": f"{self.root}/etc", "MEP_VAR": f"{self.root}/var", "MEP_RUN": f"{self.root}/run"}

    @property
    def workplace(self) -> str:
        """Where tasks may write: people's homes; for a person's own endpoint a place that goes with the site."""
        return "$HOME" if self.multi_user else str(self.root / "home")

    def account(self, name: str, groups: list[str] | None = None, uid: int | None = None) -> Account:
        """Make a throw-away account that lasts as long as the site. Raises NameTaken."""
        with self._recorded(name):
            return accounts.make(name, self.root / "home" / name, groups, uid)

    def group(self, name: str) -> int:
        """Make a throw-away group that lasts as long as the site; returns its id. Raises NameTaken."""
        with self._recorded(name):
            return accounts.make_group(name)

    @contextmanager
    def _recorded(self, name: str) -> Iterator[None]:
        """Record an account or group before it is made, and never an existing one."""
        accounts.check_free(name)
        self.ledger.account(name)
        try:
            yield
        except NameTaken:
            self.ledger.forget(name)
            raise

    def start_relay(self) -> None:
        """Start the relay."""
        self.relay.start()

    def endpoint(self, name: str, owner: Person) -> Endpoint:
        """Configure and register an endpoint in the name of `owner`; it is not started yet."""
        endpoint = Endpoint(self, name)
        endpoint.configure(owner)
        self._stack.callback(endpoint.stop)
        return endpoint

    def logs(self) -> str:
        """Return the end of every log of the site and of its people's user endpoints."""
        files = [
            *self.root.glob("logs/*.log"),
            *self.root.glob("home/*/.mep/uep/*/*.log"),
            *self.root.glob("uep/*/*.log"),
        ]
        return "\n".join(f"--- {file.relative_to(self.root)}\n{tail(file)}" for file in files)

    def close(self) -> None:
        """Stop and remove everything."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
