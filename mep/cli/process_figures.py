"""CPU time and memory of user endpoints' processes, by psutil, in a child that is never root.

Root forks the child once, as `nobody`, which sees what every account sees in /proc. Question and answer are records of
a fixed size. With hidepid on /proc the child sees nothing, and the figures are missing. Called by status and top.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from mep.cli.exit_codes import CliFailed
from mep.cli.unprivileged_child import UnprivilegedChild

if TYPE_CHECKING:
    from types import TracebackType

_PID, _RECORD = struct.Struct("<i"), struct.Struct("<idqi")
_AT_ONCE = 1000
_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """The processes of one user endpoint: all descendants of its keeper."""

    cpu_s: float
    memory_bytes: int
    processes: int


class Sampler:
    """Takes samples for the length of a `with` block."""

    def __init__(self) -> None:
        self._account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
        self._child = UnprivilegedChild(_serve, self._account)

    def sample(self, keepers: Iterable[int]) -> dict[int, ProcessFigures]:
        """Return the figures by keeper, without keepers of which nothing is seen.

        Never raises CliFailed: a person who has very many processes must not hide the endpoint's state.
        """
        try:
            return self._sample(keepers)
        except (CliFailed, OSError):
            self._child.__exit__(None, None, None)  # its late answer would be taken for the next one
            self._child = UnprivilegedChild(_serve, self._account)
            return {}

    def _sample(self, keepers: Iterable[int]) -> dict[int, ProcessFigures]:
        found: dict[int, ProcessFigures] = {}
        wanted = list(keepers)
        for start in range(0, len(wanted), _AT_ONCE):
            asked = wanted[start : start + _AT_ONCE]
            self._child.send(b"".join(map(_PID.pack, asked)))
            answer = self._child.receive(_AT_ONCE * _RECORD.size, _ANSWER_S)
            whole = answer[: len(answer) // _RECORD.size * _RECORD.size]
            for keeper, cpu_s, memory, processes in _RECORD.iter_unpack(whole):
                if processes:
                    found[keeper] = ProcessFigures(cpu_s, memory, processes)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self._child.__exit__(kind, error, trace)


def _serve(parent: socket.socket) -> None:
    """Answer until the parent is gone."""
    while question := parent.recv(_AT_ONCE * _PID.size + 1):
        keepers = [pid for (pid,) in _PID.iter_unpack(question[: len(question) // 4 * 4])]
        parent.send(b"".join(_RECORD.pack(pid, *_of_tree(tree)) for pid, tree in _trees(keepers).items()))


def _trees(keepers: list[int]) -> dict[int, list[int]]:
    """Return the descendants of each keeper."""
    import psutil

    below: dict[int, list[int]] = {}
    for one in psutil.process_iter(["pid", "ppid"]):
        below.setdefault(one.info["ppid"], []).append(one.info["pid"])
    found: dict[int, list[int]] = {}
    for keeper in keepers:
        tree: list[int] = []
        front = list(below.get(keeper, ()))
        while front:
            pid = front.pop()
            tree.append(pid)
            front += below.get(pid, ())
        found[keeper] = tree
    return found


def _of_tree(tree: list[int]) -> tuple[float, int, int]:
    """Return CPU seconds, memory (what processes share counted once, roughly) and the number of processes."""
    import psutil

    cpu, private, shared, count = 0.0, 0, 0, 0
    for pid in tree:
        try:
            process = psutil.Process(pid)
            memory, times = process.memory_info(), process.cpu_times()
        except psutil.Error:
            continue
        cpu += times.user + times.system + times.children_user + times.children_system
        private += max(0, memory.rss - memory.shared)
        shared = max(shared, memory.shared)
        count += 1
    return cpu, private + shared, count
