"""The pauses between attempts, one peer's and a thousand peers' at once: a simulation with a seeded generator."""

from __future__ import annotations

import heapq
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from mep_link.backoff import LONGEST_S, OUTAGE_SHARE, SOON_S, Backoff

PEERS = 1000
SLOT_S = 0.1
FAIR_SHARE = 0.15
"""Most attempts in SLOT_S, as a share of the peers. Evenly spread over SOON_S they would be 0.05."""


def most() -> float:
    return 1.0


def least() -> float:
    return 0.0


def test_pauses_double_to_the_short_limit_and_start_again() -> None:
    backoff = Backoff(0.25, draw=most)
    assert [backoff.next_pause_s() for _ in range(6)] == [0.25, 0.5, 1.0, 2.0, 2.0, 2.0]
    backoff.reset()
    assert backoff.next_pause_s() == 0.25
    assert Backoff(1.0, draw=least).next_pause_s() == pytest.approx(0.1)


def test_a_pause_is_as_long_as_the_relay_asks() -> None:
    assert Backoff(1.0, draw=most).next_pause_s(at_least_s=5.0) == 5.0


def test_a_long_outage_makes_pauses_longer_up_to_the_limit() -> None:
    backoff, waited = Backoff(draw=most), 0.0
    while (pause := backoff.next_pause_s()) < LONGEST_S:
        assert pause <= max(SOON_S, waited * OUTAGE_SHARE)
        waited += pause
    assert waited > LONGEST_S / OUTAGE_SHARE / 2


def test_refusals_are_answered_with_patience() -> None:
    backoff = Backoff(1.0, 30.0, draw=most)
    assert [backoff.next_pause_s(patient=True) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def returns(
    up: Callable[[float], bool], make: Callable[[random.Random], Backoff], until_s: float = 200.0
) -> list[float]:
    """Return when each of PEERS peers, which lost the relay at 0, first asks while it is up, in order."""
    rng = random.Random(10)
    waiting = []
    for peer in range(PEERS):
        backoff = make(rng)
        heapq.heappush(waiting, (backoff.next_pause_s(), peer, backoff))
    back = []
    while waiting:
        now, peer, backoff = heapq.heappop(waiting)
        if up(now):
            back.append(now)
        elif now < until_s:
            heapq.heappush(waiting, (now + backoff.next_pause_s(), peer, backoff))
    return back


def ours(rng: random.Random) -> Backoff:
    return Backoff(draw=rng.random)


def without_jitter(_rng: random.Random) -> Backoff:
    return Backoff(draw=most)


class Doubling(Backoff):
    """Pauses that double up to 30 s, half of each random: those that user endpoints made before."""

    def next_pause_s(self, at_least_s: float = 0.0, *, patient: bool = False) -> float:
        pause: float = min(30.0, 0.2 * 2.0**self.attempts) * (0.5 + self._draw() / 2)
        self.attempts += 1
        return pause


def doubling(rng: random.Random) -> Backoff:
    return Doubling(draw=rng.random)


def busiest(times: list[float]) -> int:
    """Return the most attempts in one slot."""
    return max(Counter(int(when / SLOT_S) for when in times).values())


@pytest.mark.parametrize("outage_s", [1.0, 5.0, 33.0, 100.0])
def test_a_thousand_peers_are_back_soon_and_one_by_one(outage_s: float) -> None:
    back = returns(lambda now: now >= outage_s, ours)
    assert len(back) == PEERS
    assert back[0] - outage_s < 0.1
    assert back[-1] - outage_s <= SOON_S
    assert busiest(back) <= FAIR_SHARE * PEERS


def test_a_loss_that_takes_no_time_brings_no_stampede() -> None:
    assert busiest(returns(lambda _now: True, ours)) <= FAIR_SHARE * PEERS


def test_a_relay_that_flaps_is_found_soon_after_its_last_return() -> None:
    """It serves a tenth of each 5 s; a peer that is served then loses it again, and goes on where it was."""
    rng = random.Random(12)
    late = []
    for _ in range(PEERS):
        backoff, now = ours(rng), 0.0
        while now < 60.0:
            now += backoff.next_pause_s()
        late.append(now - 60.0)
    assert max(late) <= SOON_S


def test_the_simulation_shows_a_stampede_and_a_slow_return() -> None:
    """The test's own test: it tells good pauses from those without jitter, and from those that were there before."""
    assert busiest(returns(lambda now: now >= 33.0, without_jitter)) == PEERS
    slow = returns(lambda now: now >= 33.0, doubling)
    assert slow[len(slow) // 2] - 33.0 > 3.0
    assert slow[-1] - 33.0 > 12.0


def test_a_relay_that_serves_slowly_has_all_peers_in_the_end() -> None:
    """It serves 100 peers a second and fails the others, and their load does not grow."""
    rng = random.Random(11)
    waiting = [(SOON_S * rng.random(), peer, ours(rng)) for peer in range(PEERS)]
    heapq.heapify(waiting)
    served, asked, last = Counter[int](), Counter[int](), 0.0
    while waiting:
        now, peer, backoff = heapq.heappop(waiting)
        asked[int(now)] += 1
        if served[int(now)] < 100:
            served[int(now)] += 1
            last = now
        else:
            heapq.heappush(waiting, (now + backoff.next_pause_s(), peer, backoff))
    assert last < 12.0
    assert max(asked.values()) <= 1.5 * PEERS


def test_the_pauses_load_nothing_of_zeromq() -> None:
    """The SDK's wheel carries this module and has no ZeroMQ."""
    code = "import sys, mep_link.backoff; print('zmq' in sys.modules, 'mep_link.client' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
