"""Measures the cost of PAM in a cold start: one person and account on two endpoints of one site, one of them with PAM.

Run as root: `python benchmarks/pam_cost.py`. Starts alternate, so that load on the host affects both. The PAM service
is a copy of etc/pam.d/mep under another name, removed afterwards.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import ssh
from ours import Bench, nothing
from sitekit import ledger
from sitekit.daemon import stop_on_signals
from sitekit.endpoint import Endpoint
from sitekit.site import Site

from mep_sdk import Client, Executor

REPEAT, RESULT_S = 15, 60
SHIPPED = Path(__file__).resolve().parent.parent / "etc" / "pam.d" / "mep"


def first_result_s(bench: Bench, endpoint: Endpoint, number: int) -> float:
    """Return the time from a new Executor to its first result, with no user endpoint running."""
    client = Client(relay_url=bench.person.relay_url, token=bench.person.token)
    config = {"number": number, "engine": "processes", "idle_s": 600, "short": True}
    started = time.perf_counter()
    executor = Executor(endpoint_id=endpoint.id, client=client, user_endpoint_config=config)
    executor.submit(nothing).result(timeout=RESULT_S)
    took = time.perf_counter() - started
    executor.shutdown(wait=False, cancel_futures=True)
    return took


def measure(service: str) -> None:
    """Print medians and quartiles of both."""
    with Site("mepbench") as site:
        bench = Bench(site)
        bench.stopped.add_config(f"pam: {{enable: true, service_name: {service}}}\n")
        bench.stopped.start()
        times: dict[str, list[float]] = {"without PAM": [], "with PAM": []}
        for number in range(REPEAT + 1):
            for name, endpoint in (("without PAM", bench.endpoint), ("with PAM", bench.stopped)):
                times[name].append(first_result_s(bench, endpoint, 1000 + number))
        for name, all_of_them in times.items():
            counted = all_of_them[1:]  # the first one loads files that later ones find cached
            low, median, high = statistics.quantiles(counted, n=4)
            print(f"{name}: median {median * 1e3:.0f} ms, quartiles {low * 1e3:.0f} to {high * 1e3:.0f} ms")
        if ssh.available():
            print(f"ssh with PAM: median {ssh.first_result_s(site, bench.account, pam=True) * 1e3:.0f} ms")


def main() -> int:
    """Make the service file, measure, remove it."""
    if os.geteuid() != 0:
        print("PAM needs root")
        return 1
    stop_on_signals()
    ledger.sweep()
    service = Path("/etc/pam.d", f"mepbench-{os.getpid()}")
    service.write_text(SHIPPED.read_text())
    try:
        measure(service.name)
    finally:
        service.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
