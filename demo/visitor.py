"""One person who uses the endpoint, through the SDK alone."""

from __future__ import annotations

import grp
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import Any

from report import Report, Row
from scripts import nothing, who_am_i
from sitekit.accounts import Account
from sitekit.errors import SiteError
from sitekit.site import Person

from mep_sdk import Client, Executor


@dataclass
class Visitor:
    """A person with their account at the site and the values they choose."""

    person: Person
    account: Account
    endpoint_id: str
    workplace: str
    config: dict[str, Any]
    cold_s: float = 0.0
    _executor: Executor | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Their name in the demo's output."""
        return self.person.username.partition("@")[0]

    @property
    def executor(self) -> Executor:
        """Their executor, made when first used."""
        if self._executor is None:
            self._executor = self.another_executor()
        return self._executor

    def another_executor(self, **config: Any) -> Executor:
        """Return a new executor, with other chosen values where given."""
        return Executor(endpoint_id=self.endpoint_id, client=self.client(), user_endpoint_config=self.config | config)

    def client(self) -> Client:
        """Return a new client that speaks for them."""
        return Client(relay_url=self.person.relay_url, token=self.person.token)

    def with_config(self, **config: Any) -> Visitor:
        """Return the same person with other chosen values, hence another user endpoint."""
        return replace(self, config=self.config | config, cold_s=0.0, _executor=None)

    def first_result(self) -> dict[str, Any]:
        """Run the first task, which starts the user endpoint, and note how long that took."""
        started = time.perf_counter()
        found: dict[str, Any] = self.executor.submit(who_am_i, f"{self.workplace}/project").result(timeout=60)
        self.cold_s = time.perf_counter() - started
        return found

    def close(self) -> None:
        """Close the executor without waiting for anything."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)


def show_who(report: Report, visitor: Visitor) -> None:
    """Show the account that a person's function ran as. Raises SiteError if it is not theirs."""
    found = visitor.first_result()
    account = visitor.account
    expected = {"uid": account.uid, "gid": account.gid, "groups": account.groups, "home": str(account.home)}
    wrong = {key: (found[key], value) for key, value in expected.items() if found[key] != value}
    if wrong or found["project"] != visitor.config["project"]:
        raise SiteError(f"{visitor.name}'s function ran as somebody else: {found}, expected {expected}")
    groups = ", ".join(grp.getgrgid(gid).gr_name for gid in found["groups"])
    report.note(
        f"{visitor.name}: uid {found['uid']} ({found['user']}), groups {groups}, HOME {found['home']}, "
        f"project {found['project']!r}"
    )


def measure(visitor: Visitor, tasks: int = 10_000) -> Row:
    """Time a person's warm round trips and throughput (and cold start, where it was not timed yet)."""
    if not visitor.cold_s:
        visitor.first_result()
    executor = visitor.executor
    singles = []
    for _ in range(100):
        started = time.perf_counter()
        executor.submit(nothing).result(timeout=60)
        singles.append(time.perf_counter() - started)
    started = time.perf_counter()
    for future in [executor.submit(nothing) for _ in range(tasks)]:
        future.result(timeout=60)
    rate = tasks / (time.perf_counter() - started)
    engine = visitor.config.get("engine", "ProcessPoolEngine")
    return Row(visitor.name, visitor.account.name, engine, visitor.cold_s, statistics.median(singles), rate)
