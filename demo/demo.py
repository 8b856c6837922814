"""`make demo`: two people's functions run as their own accounts on a temporary site, which is removed afterwards.

As root: a relay and a multi-user endpoint, accounts for Alice and Bob. Otherwise: a relay and a single-user
endpoint of the current user. All steps use the public interfaces: `mep-relay`, `mep` and the SDK.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack, closing

from refusals import show_refusals
from report import Report
from rich.console import Console
from sitekit import ledger
from sitekit.accounts import Account
from sitekit.daemon import stop_on_signals
from sitekit.endpoint import Endpoint
from sitekit.errors import SiteError
from sitekit.site import ADMIN, Person, Site
from template import configure
from tutorial import estimate_pi, run_tutorial
from visitor import Visitor, measure, show_who

from mep_wire.errors import MepError


def _own(name: str) -> str:
    """Return the name of an account or group of this run alone: two demos may run on one machine."""
    return f"mepdemo-{os.getpid()}-{name}"


def _accounts(site: Site) -> list[Account]:
    if not site.multi_user:
        return [site.owner]
    group = _own("lab")
    site.group(group)
    return [site.account(_own(name), [group]) for name in ("alice", "bob")]


def _visitors(site: Site, endpoint: Endpoint, people: list[Person], accounts: list[Account]) -> list[Visitor]:
    projects = ["turbines", "galaxies"]
    return [
        Visitor(person, account, endpoint.id, site.workplace, {"project": project, "workers": 2})
        for person, account, project in zip(people, accounts, projects, strict=False)
    ]


def run(console: Console, site: Site) -> None:
    """The whole demo on a fresh site."""
    report = Report(console)
    report.step("Starting a relay and an endpoint")
    accounts = _accounts(site)
    site.start_relay()
    usernames = ["alice@example.edu", "bob@example.edu"] if site.multi_user else [f"{site.owner.name}@example.edu"]
    people = [site.relay.add_person(username) for username in usernames]
    owner = site.relay.add_person(ADMIN) if site.multi_user else people[0]
    endpoint = site.endpoint(f"demo-{os.getpid()}", owner)
    configure(endpoint, site.workplace, mapped_to=_own("{0}") if site.multi_user else "")
    endpoint.start()
    report.note(f"relay {site.relay.url}, endpoint {endpoint.id}, {'multi' if site.multi_user else 'single'}-user")

    visitors = _visitors(site, endpoint, people, accounts)
    with ExitStack() as stack:
        for visitor in visitors:
            stack.callback(visitor.close)
        use(report, site, visitors)


def use(report: Report, site: Site, visitors: list[Visitor]) -> None:
    """Use the endpoint as each person."""
    report.step("Each person's function runs as that person's account, with the value that the person chose")
    for visitor in visitors:
        show_who(report, visitor)
    run_tutorial(report, visitors[0])
    estimate_pi(report, visitors[-1])
    show_refusals(report, site, visitors[0])
    report.step("Measuring")
    rows = [measure(visitor) for visitor in visitors]
    with closing(visitors[0].with_config(engine="GlobusComputeEngine")) as parsl:
        rows.append(measure(parsl, tasks=1000))
    report.table(rows)


def _run_or_explain(console: Console, site: Site) -> None:
    try:
        run(console, site)
    except (SiteError, MepError, TimeoutError):
        console.print(site.logs(), markup=False, soft_wrap=True)
        raise


def main() -> int:
    """Run the demo, and remove everything it made, even when it is interrupted."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    stop_on_signals()
    started = time.monotonic()
    try:
        for line in ledger.sweep():
            console.print(line)
        with Site("mepdemo") as site:
            _run_or_explain(console, site)
            console.print("\nStopping everything and removing what was made ...", end=" ")
        console.print(f"done, after {time.monotonic() - started:.0f} s in all.")
    except (SiteError, MepError, TimeoutError) as error:
        console.print(f"the demo failed: {str(error) or type(error).__name__}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything was stopped and removed")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
