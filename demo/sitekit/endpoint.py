"""One endpoint of a site: configured, registered, started and stopped with the command `mep`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sitekit.daemon import BIN, Daemon, command

if TYPE_CHECKING:
    from sitekit.site import Person, Site

MAPPING = "identity_mapping.json"
TEMPLATE = "user_config_template.yaml.j2"
SCHEMA = "user_config_schema.json"


def expression_mapping(*rules: tuple[str, str]) -> list[dict[str, Any]]:
    """Return an identity mapping with (match, output) rules over usernames."""
    mappings = [{"source": "{username}", "match": match, "output": output} for match, output in rules]
    return [{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": mappings}]


class Endpoint:
    """An endpoint and its five files."""

    def __init__(self, site: Site, name: str) -> None:
        self._site = site
        self.name = name
        self.log = site.root / "logs" / f"{name}.log"
        self._token_file = site.root / f"{name}.token"
        self._daemon: Daemon | None = None
        self.before: list[str] = []
        """Words in front of the command that starts it, which exec it."""

    @property
    def config_dir(self) -> Path:
        """Where the administrator's files are."""
        return self._site.root / "etc" / self.name

    @property
    def runtime_dir(self) -> Path:
        """Where the monitor keeps status.json and the keepers' records."""
        return self._site.root / "run" / self.name

    @property
    def id(self) -> str:
        """The endpoint's UUID."""
        file = self._site.root / "var" / self.name / "registration.json"
        return str(json.loads(file.read_text())["endpoint_id"])

    def configure(self, owner: Person) -> None:
        """Write the files and register with the relay in the name of `owner`."""
        self._token_file.write_text(owner.token)
        self._token_file.chmod(0o600)
        if self._site.run_as is not None:
            os.chown(self._token_file, self._site.run_as.uid, self._site.run_as.gid)
        kind = ["--multi-user"] if self._site.multi_user else []
        self._mep("configure", self.name, *kind, "--relay", owner.relay_url, "--token-file", str(self._token_file))
        if not self._site.multi_user:  # nothing in the person's real home directory
            self.add_config(f"user_state_dir: {self._site.root}/uep\n")

    def add_config(self, text: str) -> None:
        """Add lines to config.yaml."""
        with (self.config_dir / "config.yaml").open("a") as config:
            config.write(f"\n{text}")

    def write(self, name: str, content: str | Mapping[str, Any] | list[Any]) -> None:
        """Replace one of the administrator's files: text as it is, anything else as JSON."""
        (self.config_dir / name).write_text(content if isinstance(content, str) else json.dumps(content))

    def register_again(self) -> None:
        """Register again after a change of the files: the relay has its own copy of the schema."""
        self._mep("register", self.name, "--again", "--token-file", str(self._token_file))

    def start(self) -> None:
        """Start it and wait until its link to the relay is up."""
        self._daemon = Daemon(
            *self.before,
            *(BIN / "mep", "start", self.name),
            env=self._site.env,
            log=self.log,
            ledger=self._site.ledger,
            run_as=self._site.run_as,
        )
        self._daemon.wait_for("link to the relay", lambda: True if self.is_up() else None)

    def is_up(self) -> bool:
        """Whether its link to the relay is up."""
        return self.status().get("link_state") == "up"

    def status(self) -> dict[str, Any]:
        """Return the monitor's status, empty if it has written none yet."""
        try:
            found: dict[str, Any] = json.loads((self.runtime_dir / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def kill(self) -> None:
        """End its monitor as a crash would; its user endpoints go on."""
        if self._daemon is not None:
            self._daemon.kill()

    def stop(self) -> None:
        """Stop it with its user endpoints, if it runs."""
        if self._daemon is None:
            return
        daemon, self._daemon = self._daemon, None
        if daemon.is_running():
            self._mep("stop", self.name)
            daemon.stop()

    def _mep(self, *words: str) -> str:
        return command(BIN / "mep", *words, env=self._site.env, run_as=self._site.run_as)
