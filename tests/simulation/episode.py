"""One episode: a world made of a seed, its faults, and a quiet time in which every task must end.

An episode is small and short, so that a failing one is read from its beginning to its end. A campaign is many of them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from mep_wire.identity import Identity
from relay.store.base import Tx
from relay.store.records import EndpointRecord, FunctionRecord

from .network import Network
from .oracle import Broken, Oracle
from .people import Person
from .relay_side import RelayHost, errors_to, patches
from .site import Site
from .world import World, ruled_by

T = TypeVar("T")

STEPS = 4000
"""Steps of an episode before its quiet time."""
QUIET_S = 3 * 3600.0
"""Simulated time in which every task must end once nothing fails any more."""
QUIET_STEPS = 60_000
LATE_S = 60.0
"""How long it is then watched for effects that come too late."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an episode came to."""

    seed: int
    steps: int
    tasks: int
    ended: Counter[str]
    faults: Counter[str]
    broken: str = ""
    trace: tuple[str, ...] = ()


class Episode:
    """See the module."""

    dead = False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = World(seed)
        self.oracle = Oracle(self.world)
        self.network = Network(self.world)
        self.host = RelayHost(self.world, self.network, self.oracle)
        self.faults: Counter[str] = Counter()
        self._quiet = False

    def _build(self) -> None:
        world = self.world
        self.sites = [
            Site(world, self.network, self.oracle, str(uuid.UUID(bytes=world.token(16))))
            for _ in range(world.rng.choice([1, 1, 2]))
        ]
        self._register()
        self.host.start()
        for site in self.sites:
            site.refusing, site.dying, site.busy = (world.rng.choice([0.0, 0.02, 0.2]) for _ in range(3))
            site.boot()
        self.people = [
            Person(world, self.host, self.oracle, world.rng.choice(self.sites).endpoint_id, number)
            for number in range(world.rng.choice([1, 2, 4]))
        ]
        self.host.store.writer.slowest_s = world.rng.choice([0.001, 0.05, 0.5])
        self._pause_s = world.rng.choice([0.5, 2.0, 20.0])
        kinds = list(self._kinds())
        self._chosen = [kind for kind in kinds if world.chance(0.5)] or kinds
        world.after(world.between(0.1, 5.0), self._fault)

    def _register(self) -> None:
        def do(change: Callable[[Tx], T]) -> T:
            store = self.host.store
            future = store.writer.submit(change)
            store.writer.commit_waiting()
            return future.result()

        do(lambda tx: tx.add_account("a", Identity(id="i", username="alice")))
        for site in self.sites:
            endpoint = EndpointRecord(
                endpoint_id=site.endpoint_id, owner="a", name="lab", display_name="", multi_user=True, public=False,
                allowed_functions=None, user_config_schema=None, metadata={}, link_key=site.link_key,
                unseal_key=b"u" * 32, created_at=1.0,
            )  # fmt: skip
            do(lambda tx, endpoint=endpoint: tx.put_endpoint(endpoint))  # type: ignore[misc]
        function = FunctionRecord(
            function_id="f", owner="a", name="f", code=b"code", public=False, description="", metadata={}, created_at=1
        )
        do(lambda tx: tx.put_function(function))

    # --- faults ----------------------------------------------------------------------------------

    def _kinds(self) -> dict[str, Callable[[], object]]:
        return {
            "uep killed": self._kill_uep,
            "worker killed": self._kill_worker,
            "uep's link cut": lambda: self._cut_uep(silent=False),
            "uep's link frozen": lambda: self._cut_uep(silent=True),
            "manager's link cut": lambda: self._cut_manager(silent=False),
            "manager's link frozen": lambda: self._cut_manager(silent=True),
            "manager killed": lambda: self._site().kill_manager(),
            "monitor killed": lambda: self._site().kill_monitor(),
            "relay killed": self._kill_relay,
            "relay's disk full": self._fill_disk,
            "tasks cancelled": lambda: self.world.rng.choice(self.people).cancel(),
            "clock stepped": self._step_clock,
        }

    def _site(self) -> Site:
        return self.world.rng.choice(self.sites)

    def _fault(self) -> None:
        if self._quiet:
            return
        for _ in range(2 if self.world.chance(0.2) else 1):  # two at once
            kind = self.world.rng.choice(self._chosen)
            self.faults[kind] += 1
            self.world.say("fault: %s", kind)
            self._kinds()[kind]()
        self.world.after(self.world.between(self._pause_s / 10, self._pause_s * 3), self._fault)

    def _process(self) -> Any:
        found = [process for site in self.sites for process in site.processes.values() if not process.dead]
        return self.world.rng.choice(found) if found else None

    def _kill_uep(self) -> None:
        if (process := self._process()) is not None:
            process.kill()

    def _kill_worker(self) -> None:
        if (process := self._process()) is not None:
            process.engine.kill_worker()

    def _cut_uep(self, *, silent: bool) -> None:
        if (process := self._process()) is not None:
            process.link.cut(silent=silent)

    def _cut_manager(self, *, silent: bool) -> None:
        if (manager := self._site().manager) is not None:
            manager.cut(silent=silent)

    def _kill_relay(self) -> None:
        if self.host.loop is not None:
            self.host.kill()
            self.world.after(self.world.between(0.2, 60.0), self._start_relay)

    def _start_relay(self) -> None:
        if self.host.loop is None:
            self.host.start()

    def _fill_disk(self) -> None:
        writer = self.host.store.writer
        writer.refuses = True
        self.world.after(self.world.between(0.01, 10.0), setattr, writer, "refuses", False)

    def _step_clock(self) -> None:
        self.world.clock_offset += self.world.rng.choice([-1, 1]) * self.world.between(0.1, 100.0)

    # --- the run ---------------------------------------------------------------------------------

    def run(self, steps: int) -> None:
        """Run it. Raises Broken."""
        self._build()
        self._go_on(steps, float("inf"), lambda: False)
        self._quiet = True
        for site in self.sites:
            site.refusing = site.dying = site.busy = 0.0
        for person in self.people:
            person.active = False
        end = self.world.now + QUIET_S
        self._go_on(QUIET_STEPS, end, lambda: not self.oracle.open)
        if self.oracle.open:
            waiting = [truth.task_id for truth in self.oracle.tasks.values() if truth.end is None]
            self.oracle.broken(f"{len(waiting)} tasks do not end, the first {waiting[0]}: {self._where(waiting)}")
        self._go_on(QUIET_STEPS, self.world.now + LATE_S, lambda: False)

    def _where(self, waiting: Sequence[str]) -> str:
        """Return in which states tasks are, and how the relay's records are."""
        found = self.host.store.tasks([uuid.UUID(text).bytes for text in waiting])
        states = Counter((task.uep_row, task.state.name) for task in found)
        lines = [f"user endpoint {row}: {count} {state}" for (row, state), count in states.items()]
        lines.append(f"{len(waiting) - len(found)} not submitted")
        if self.host.dispatcher is not None:
            lines += [str(uep) for uep in self.host.dispatcher.live.ueps.values()]
        return "; ".join(lines)

    def _go_on(self, steps: int, until: float, done: Callable[[], bool]) -> None:
        self.world.run(steps, until, lambda: bool(self.host.failures or self.oracle.first) or done())
        if self.oracle.first:
            raise Broken(self.oracle.first)
        if self.host.failures:
            self.oracle.broken(f"the relay's code failed: {self.host.failures[0]}")


def run_episode(seed: int, steps: int = STEPS, also: Sequence[Any] = (), *, whole: bool = False) -> Outcome:
    """Run the episode of a seed. `also`: patches, as of code that is to be found wrong. `whole`: keep all of the trace
    of a failing one, not only its end."""
    log = logging.getLogger("relay")
    kept = log.level, log.propagate
    gc.disable()
    episode = Episode(seed)
    if whole:
        episode.world.trace = deque()
    handler = errors_to(episode.host.failures.append)
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.addHandler(handler)
    broken = ""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(ruled_by(episode.world))
            for patch in [*patches(episode.world, episode.host), *also]:
                stack.enter_context(patch)
            try:
                episode.run(steps)
            except Broken as error:
                broken = str(error)
            if episode.host.loop is not None:
                episode.host.loop.kill()
    finally:
        log.removeHandler(handler)
        log.setLevel(kept[0])
        log.propagate = kept[1]
        gc.enable()
    world = episode.world
    trace = tuple(_line(*line) for line in world.trace) if broken else ()
    outcome = Outcome(seed, world.steps, len(episode.oracle.tasks), episode.oracle.ended, episode.faults, broken, trace)
    episode.host.store.close()
    return outcome


def _line(at: float, text: str, args: tuple[Any, ...]) -> str:
    """Return a line of the trace; messages are shown decoded."""
    shown = tuple(str(msgspec.msgpack.decode(one))[:20000] if isinstance(one, bytes) else one for one in args)
    return f"{at:12.4f}  {text % shown}"
