"""A relay and an endpoint as a site has them, with nothing mocked: multi-user as root, and single-user.

The single-user site belongs to the account that runs the tests. Root may not have a single-user site, and the site then
belongs to a throw-away account.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sitekit.accounts import Account
from sitekit.endpoint import MAPPING, SCHEMA, TEMPLATE, Endpoint, expression_mapping
from sitekit.site import ADMIN, Person, Site

from mep_sdk import Client, Executor

TEMPLATE_TEXT = """\
display_name: {{ project | default("tests") }}
heartbeat_period: 5
idle_heartbeats_soft: {{ idle | default(0) }}
engine:
{% if engine | default("ProcessPoolEngine") == "GlobusComputeEngine" %}
  type: GlobusComputeEngine
  max_workers_per_node: {{ workers | default(2) }}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
{% else %}
  type: {{ engine | default("ProcessPoolEngine") }}
  max_workers: {{ workers | default(2) }}
{% endif %}
endpoint_setup: |
  printf %s {{ project | default("none") | shell_escape }} > "WORKPLACE/project"
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {
        "project": {"type": "string"},
        "workers": {"type": "integer", "minimum": 1, "maximum": 4},
        "engine": {"enum": ["ProcessPoolEngine", "ThreadPoolEngine", "GlobusComputeEngine"]},
        "idle": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}


class Campus:
    """A running endpoint of a site, and the people who may call it."""

    def __init__(self, site: Site, endpoint: Endpoint, people: dict[str, Person], found: dict[str, Account]) -> None:
        self.site, self.endpoint, self.people, self.accounts = site, endpoint, people, found
        self._executors = ExitStack()

    @property
    def anybody(self) -> str:
        """A person who is mapped here."""
        return next(iter(self.accounts))

    def person(self, name: str) -> Person:
        """Return a person known to the relay, added now if they are new."""
        if name not in self.people:
            self.people[name] = self.site.relay.add_person(f"{name}@example.edu")
        return self.people[name]

    def client(self, name: str) -> Client:
        """Return a client that speaks for `name`."""
        person = self.person(name)
        return Client(relay_url=person.relay_url, token=person.token)

    @contextmanager
    def executor(self, name: str, **config: Any) -> Iterator[Executor]:
        """An executor of `name` with these values, which does not wait for lost tasks at its end."""
        executor = Executor(endpoint_id=self.endpoint.id, client=self.client(name), user_endpoint_config=config)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def pids(self) -> dict[str, int]:
        """Return the pid of every user endpoint by its id, by the keepers' records: the status file follows later."""
        found = {}
        for file in self.endpoint.runtime_dir.glob("keepers/*/record.json"):
            with suppress(FileNotFoundError):
                record = json.loads(file.read_text())
                if record["uep_pid"] and record["state"] != "ended":
                    found[record["uep_id"]] = int(record["uep_pid"])
        return found

    def new_pids(self, before: dict[str, int]) -> dict[str, int]:
        """Return the entries of `pids` that are not in `before`; there must be some."""
        new = {uep: pid for uep, pid in self.pids().items() if before.get(uep) != pid}
        assert new, "no new user endpoint"
        return new

    def starts(self) -> int:
        """Return how many starts the monitor has been asked for, by its log."""
        return self.log().count("start request mapped") + self.log().count("start answered")

    def log(self) -> str:
        """Return everything that monitor, manager and mapper have logged."""
        return self.endpoint.log.read_text(errors="replace")


_numbers = itertools.count()


def _prefix() -> str:
    """Return the prefix of the names of one place's throw-away accounts."""
    return f"meptest-{os.getpid()}-{next(_numbers)}-"


def _multi_user(site: Site, name: str) -> Campus:
    prefix = _prefix()
    group = prefix + "lab"
    site.group(group)
    found = {who: site.account(prefix + who, [group]) for who in ("alice", "bob")}
    site.start_relay()
    endpoint = site.endpoint(name, site.relay.add_person(ADMIN))
    odd = [
        ("rooty@example\\.edu", "root"),
        ("ghost@example\\.edu", prefix + "ghost"),
        ("daemon@example\\.edu", "daemon"),
    ]
    own = [("manager@example\\.edu", "mep"), ("mapper@example\\.edu", "mep-idmap")]
    endpoint.write(MAPPING, expression_mapping(("(alice|bob)@example\\.edu", prefix + "{0}"), *odd, *own))
    return Campus(site, endpoint, {}, found)


def _single_user(site: Site, name: str) -> Campus:
    site.start_relay()
    me = site.relay.add_person("me@example.edu")
    return Campus(site, site.endpoint(name, me), {"me": me}, {"me": site.owner})


@contextmanager
def make_campus(mode: str, name: str, template: str = TEMPLATE_TEXT) -> Iterator[Campus]:
    """A site with one endpoint, configured and registered but not started. `mode`: multi or single."""
    with ExitStack() as stack:
        owner = None
        if mode == "single" and os.geteuid() == 0:
            accounts_site = stack.enter_context(Site("meptest-owner"))
            owner = accounts_site.account(_prefix() + "owner")
        site = stack.enter_context(Site("meptest", owner))
        place = _multi_user(site, name) if mode == "multi" else _single_user(site, name)
        place.endpoint.write(TEMPLATE, template.replace("WORKPLACE", site.workplace))
        place.endpoint.write(SCHEMA, SCHEMA_VALUE)
        place.endpoint.register_again()
        yield place
