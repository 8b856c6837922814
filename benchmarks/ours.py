"""The same work on MEP: a relay, an endpoint and one person's account, made for the run."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from memory import descendants, pss_mb, rss_mb
from sitekit.accounts import Account
from sitekit.endpoint import MAPPING, SCHEMA, TEMPLATE, Endpoint, expression_mapping
from sitekit.site import ADMIN, Person, Site

from mep_sdk import Client, Executor

TEMPLATE_TEXT = """\
display_name: benchmark {{ number }}
heartbeat_period: 5
idle_heartbeats_soft: {{ 1 if short else 0 }}
engine:
{% if engine == "htex" %}
  type: GlobusComputeEngine
  max_workers_per_node: 2
  provider: {type: LocalProvider, init_blocks: 1, min_blocks: 0, max_blocks: 1}
  job_status_kwargs: {max_idletime: {{ idle_s }}, strategy_period: 1}
{% else %}
  type: ProcessPoolEngine
  max_workers: 2
{% endif %}
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {
        "number": {"type": "integer"},
        "engine": {"enum": ["processes", "htex"]},
        "idle_s": {"type": "number"},
        "short": {"type": "boolean"},
    },
    "required": ["number", "engine", "idle_s", "short"],
    "additionalProperties": False,
}
_RESULT_S = 60
_CHUNKS = 4


def nothing() -> None:
    """Do nothing."""


def length_of(number: int, data: bytes) -> int:
    """Return a number and the length of some data together."""
    return number + len(data)


class Bench:
    """One person at one endpoint."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._numbers = itertools.count()
        self.account: Account = site.account(f"mepbench-{os.getpid()}") if site.multi_user else site.owner
        site.start_relay()
        self.person: Person = site.relay.add_person("person@example.edu")
        owner = site.relay.add_person(ADMIN) if site.multi_user else self.person
        self.endpoint: Endpoint = self._configured("bench", owner)
        self.stopped: Endpoint = self._configured("stopped", owner)
        self.endpoint.start()

    def _configured(self, name: str, owner: Person) -> Endpoint:
        endpoint = self._site.endpoint(name, owner)
        endpoint.add_config("caps:\n  max_user_endpoints_per_user: 100\n")
        endpoint.write(TEMPLATE, TEMPLATE_TEXT)
        endpoint.write(SCHEMA, SCHEMA_VALUE)
        if self._site.multi_user:
            endpoint.write(MAPPING, expression_mapping(("person@example\\.edu", self.account.name)))
        endpoint.register_again()
        return endpoint

    @contextmanager
    def executor(self, engine: str, *, idle_s: float = 600, short: bool = False) -> Iterator[Executor]:
        """Yield an executor with unused values: its first task starts a user endpoint.

        `idle_s`: how long a block may idle; `short`: the user endpoint ends when it has been idle for a while.
        """
        config: dict[str, Any] = {"number": next(self._numbers), "engine": engine, "idle_s": idle_s, "short": short}
        client = Client(relay_url=self.person.relay_url, token=self.person.token)
        executor = Executor(endpoint_id=self.endpoint.id, client=client, user_endpoint_config=config)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def first_result_s(self, engine: str, repeat: int) -> float:
        """Return the median time from a new Executor to its first result with no user endpoint running."""
        times = []
        for _ in range(repeat):
            started = time.perf_counter()
            with self.executor(engine, short=True) as executor:
                executor.submit(nothing).result(timeout=_RESULT_S)
                times.append(time.perf_counter() - started)
        return statistics.median(times)

    def warm_and_rate(self, engine: str, *, singles: int, tasks: int) -> tuple[float, float]:
        """Return the median warm round trip in seconds, and tasks per second."""
        with self.executor(engine) as executor:
            executor.submit(nothing).result(timeout=_RESULT_S)
            times = []
            for _ in range(singles):
                started = time.perf_counter()
                executor.submit(nothing).result(timeout=_RESULT_S)
                times.append(time.perf_counter() - started)
            started = time.perf_counter()
            for future in [executor.submit(nothing) for _ in range(tasks)]:
                future.result(timeout=_RESULT_S)
            return statistics.median(times), tasks / (time.perf_counter() - started)

    def shared_data(self, tasks: int, size: int) -> tuple[float, float]:
        """Have tasks take the same array of `size` bytes; return the MB sent to the relay, and the seconds."""
        data = os.urandom(size)
        with self.executor("processes") as executor:
            executor.submit(nothing).result(timeout=_RESULT_S)
            started = time.perf_counter()
            for future in [executor.submit(length_of, number, data) for number in range(tasks)]:
                future.result(timeout=5 * _RESULT_S)
            return executor.client.data.sent_bytes / 1e6, time.perf_counter() - started

    def idle_pss_mb(self, engine: str) -> float | None:
        """Return the memory of a user endpoint that has run one task and is idle, or None if it is not found."""
        time.sleep(1)
        before = set(self.user_endpoints())
        with self.executor(engine, idle_s=1) as executor:
            executor.submit(nothing).result(timeout=_RESULT_S)
            time.sleep(8 if engine == "htex" else 2)  # until the status is written and an idle block has ended
            new = set(self.user_endpoints()) - before
            return pss_mb(descendants(new.pop())) if len(new) == 1 else None

    def user_endpoints(self) -> list[int]:
        return [int(each["pid"]) for each in self.endpoint.status().get("user_endpoints", [])]

    def monitor_rss_mb(self) -> float:
        """Return the monitor's resident memory."""
        return rss_mb(int(self.endpoint.status()["pid"]))

    def queued(self, tasks: int, chunk: int = 10_000) -> tuple[float, float, float]:
        """Queue tasks for an endpoint that is stopped.

        Returns the slowdown of the last chunks against the first ones in percent, the rate of the last, and the
        relay's growth in MB after the first chunk. A chunk takes 60 ms, which vary by a tenth: medians are compared.
        """
        pid = self._site.relay.pid
        client = Client(relay_url=self.person.relay_url, token=self.person.token)
        function_id = client.register_function(nothing)
        rates, sizes = [], []
        for part in range(tasks // chunk + 1):
            config = {"number": 0, "engine": "processes", "idle_s": 1, "short": True}
            batch = client.create_batch(user_endpoint_config=config)
            for _ in range(chunk):
                batch.add(function_id)
            started = time.perf_counter()
            client.batch_run(self.stopped.id, batch)
            if part:  # the first of all warms up
                rates.append(chunk / (time.perf_counter() - started))
                sizes.append(rss_mb(pid))
        few = min(_CHUNKS, len(rates))
        first, last = statistics.median(rates[:few]), statistics.median(rates[-few:])
        return (1 - last / first) * 100, last, sizes[-1] - sizes[0]
