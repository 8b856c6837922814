"""The interchange: Parsl's, which queues tasks and deals them out to nodes, taught to speak in batches.

In a process of its own (interchange_main), started by the client with its settings on standard input, which is
Parsl's way. It serves one user endpoint, as the same user, and ends when that does. Beyond Parsl's it takes
many tasks in one message, cancels, returns tasks that have not started, fills every node's workers before any node's
reserve, and tells the client of nodes at once.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from user_endpoint.engines.htex import protocol
from user_endpoint.engines.htex.authenticator import KeyAuthenticator
from user_endpoint.engines.htex.parsl_import import light_parsl
from user_endpoint.engines.htex.walltimes import fits

with light_parsl(KeyAuthenticator):
    from parsl.executors.high_throughput.interchange import PKL_SHUTDOWN_CODE, Interchange

_PR_SET_PDEATHSIG = 1
_TURN = 256


class _OneMessage:
    """Lets Parsl's code receive a message that was received already, and send on the real socket."""

    def __init__(self, real: Any) -> None:
        self._real, self._message = real, None

    def give(self, message: Any) -> None:
        self._message = message

    def recv_multipart(self) -> Any:
        return self._message

    def send_multipart(self, parts: list[bytes]) -> None:
        self._real.send_multipart(parts)


class BatchInterchange(Interchange):
    """See the module. One thread, one poll loop."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self._managers_real: Any = self.manager_sock
        self._one_message = _OneMessage(self._managers_real)
        self.manager_sock = self._one_message  # type: ignore[assignment] # has what Parsl's code calls
        self._parent = os.getppid()
        self._draining = False
        self._timed = False
        """Whether there may be tasks with a walltime in the queue."""
        self._ended_blocks: set[str] = set()
        """Nothing watches the job of such a block any more: its pools get no task."""

    def start(self) -> None:
        """Serve until the user endpoint is gone."""
        poller = zmq.Poller()
        sockets: dict[Any, Callable[[set[bytes]], None]] = {
            self._managers_real: self._from_managers,
            self.task_incoming: self._from_client,
            self.command_channel: self._command,
        }
        for socket in sockets:
            poller.register(socket, zmq.POLLIN)
        interesting: set[bytes] = set()
        while os.getppid() == self._parent:
            ready = dict(poller.poll(timeout=self.poll_period))
            for socket, handle in sockets.items():
                if socket in ready:
                    handle(interesting)
            self.expire_bad_managers(interesting, None)
            self.expire_drained_managers(interesting, None)
            self.process_tasks_to_send(interesting, None)
        self.zmq_context.destroy(0)

    # --- the client -----------------------------------------------------------------------------------

    def _from_client(self, interesting: set[bytes]) -> None:
        for frame in _frames(self.task_incoming.recv):
            match protocol.decode_to_interchange(frame):
                case protocol.Queue(tasks):
                    self._queue(tasks)
                case protocol.Cancel(ids):
                    self._cancel(set(ids))
                case protocol.Drain():
                    self._draining = True
                    self._tell_pools(frame)
                    self._report(returned=self._unsent(lambda _: True))
                case protocol.BlockEnded(block_id):
                    self._block_ended(block_id)
                case protocol.Leave():
                    self._tell_pools(frame)
        interesting.update(self._ready_managers)

    def _queue(self, tasks: list[tuple[int, bytes, float, int]]) -> None:
        if self._draining:
            self._report(returned=[number for number, *_ in tasks])
            return
        for number, task, walltime, priority in tasks:
            message: dict[str, Any] = {"task_id": number, "context": _CONTEXT, "buffer": task}
            if walltime:
                message["walltime_s"] = walltime
                self._timed = True
            self.pending_task_queue.add((float(priority), -number, message))

    def _unsent(self, wanted: Callable[[int], bool]) -> list[int]:
        """Remove the tasks that `wanted` selects from the queue of tasks that no node has."""
        found = [entry for entry in self.pending_task_queue if wanted(entry[2]["task_id"])]
        for entry in found:
            self.pending_task_queue.remove(entry)
        return [entry[2]["task_id"] for entry in found]

    def _cancel(self, ids: set[int]) -> None:
        unsent = self._unsent(ids.__contains__)
        self._report(
            results=[protocol.Result(number, "TASK_CANCELLED", "", b"", 0.0, time.time()) for number in unsent]
        )
        for manager_id, manager in self._ready_managers.items():
            held = ids.intersection(manager["tasks"])
            if held and manager.get("mep"):
                self._managers_real.send_multipart([manager_id, protocol.encode(protocol.Cancel(sorted(held)))])

    def _block_ended(self, block_id: str) -> None:
        self._ended_blocks.add(block_id)
        for manager_id, manager in self._ready_managers.items():
            if manager["block_id"] == block_id:
                manager["last_heartbeat"] = -math.inf
                self._send_away(manager_id, manager)

    def _send_away(self, manager_id: bytes, manager: Any) -> None:
        """End a pool that has outlived its block, as one does if only the block's script was killed."""
        order = protocol.encode(protocol.Leave()) if manager.get("mep") else PKL_SHUTDOWN_CODE
        self._managers_real.send_multipart([manager_id, order])

    def _tell_pools(self, frame: bytes) -> None:
        for manager_id, manager in self._ready_managers.items():
            if manager.get("mep"):
                self._managers_real.send_multipart([manager_id, frame])

    def _report(self, **what: Any) -> None:
        if any(what.values()):
            self.results_outgoing.send(protocol.encode(protocol.WorkerReport(**what)))

    # --- nodes ----------------------------------------------------------------------------------------

    def _from_managers(self, interesting: set[bytes]) -> None:
        for manager_id, frame in _frames(self._managers_real.recv_multipart):
            manager = self._ready_managers.get(manager_id)
            if protocol.is_ours(frame):
                if manager is not None and self._from_pool(manager, frame):
                    del self._ready_managers[manager_id]
                    interesting.discard(manager_id)
                elif manager is not None:
                    interesting.add(manager_id)
                continue
            self._one_message.give([manager_id, frame])
            self.socks = {self.manager_sock: zmq.POLLIN}
            super().process_manager_socket_message(interesting, None, _NEVER)
            if manager_id in self._ready_managers:  # Parsl notes the time of day, which may be set
                self._ready_managers[manager_id]["last_heartbeat"] = time.monotonic()
            if manager is None and manager_id in self._ready_managers:
                self._registered(manager_id, interesting)

    def _registered(self, manager_id: bytes, interesting: set[bytes]) -> None:
        new: Any = self._ready_managers[manager_id]
        if new["block_id"] in self._ended_blocks:
            self._send_away(manager_id, new)
            del self._ready_managers[manager_id]
            interesting.discard(manager_id)
            return
        left = new.get("left_s")
        if left is not None:
            new["ends"] = time.monotonic() + left
        python = str(new["python_v"])
        registered = protocol.Registered(str(new["block_id"]), int(new["worker_count"]), left, python)
        self.results_outgoing.send(protocol.encode(registered))

    def _from_pool(self, manager: Any, frame: bytes) -> bool:
        """Pass a report on; returns whether it was the pool's last."""
        report = protocol.decode_report(frame)
        manager["last_heartbeat"] = time.monotonic()
        ended = {result.id for result in report.results}.union(report.returned)
        if ended:
            manager["tasks"] = [number for number in manager["tasks"] if number not in ended]
            if not manager["tasks"]:
                manager["idle_since"] = time.time()
        if report.leaving and (unheard := set(manager["tasks"]).difference(report.lost)):
            # Sent to the pool, which ended before it heard of them: it cannot name them itself.
            lost = [*report.lost, *sorted(unheard)]
            frame = protocol.encode(msgspec.structs.replace(report, lost=lost, pool=str(manager["uid"])))
        self.results_outgoing.send(frame)
        return report.leaving

    def expire_bad_managers(self, interesting: set[bytes], radio: Any) -> None:
        """Give up nodes that have gone silent, and say which tasks went with them."""
        limit = time.monotonic() - self.heartbeat_threshold
        for manager_id, manager in list(self._ready_managers.items()):
            if manager["last_heartbeat"] < limit:
                self._report(lost=list(manager["tasks"]), pool=manager.get("uid", "") if manager["tasks"] else "")
                del self._ready_managers[manager_id]
                interesting.discard(manager_id)

    def process_tasks_to_send(self, interesting: set[bytes], radio: Any) -> None:
        """Deal out tasks: first to workers without one, then to the reserve of each node."""
        if not self.pending_task_queue:
            return
        for limit in ("worker_count", "max_capacity"):
            for manager_id in self.manager_selector.sort_managers(self._ready_managers, interesting):
                manager = self._ready_managers[manager_id]
                room = manager[limit] - len(manager["tasks"])
                if room <= 0 or not manager["active"] or manager["draining"]:
                    continue
                tasks = self._take(manager, room, reserve=limit == "max_capacity")
                if not self.pending_task_queue and not tasks:
                    return
                if not tasks:
                    continue
                self._managers_real.send_multipart([manager_id, pickle.dumps(tasks)])
                numbers = [task["task_id"] for task in tasks]
                manager["tasks"].extend(numbers)
                if not manager.get("mep"):  # Parsl's own pool, which will not say when they begin
                    self._report(started=numbers)
                manager["idle_since"] = None
        interesting.clear()

    def _take(self, manager: Any, room: int, *, reserve: bool) -> list[dict[str, Any]]:
        """Take at most so many tasks out of the queue that this node may have, the first ones first.

        One with a walltime goes where enough is left of the block, and never into a node's `reserve`, in which it
        would wait while the block ends.
        """
        if not self._timed:
            return list(self.get_tasks(room))
        left = manager["ends"] - time.monotonic() if "ends" in manager else None
        found: list[Any] = []
        self._timed = False
        for entry in reversed(self.pending_task_queue):
            walltime = entry[2].get("walltime_s", 0.0)
            self._timed = self._timed or bool(walltime)
            if not (reserve and walltime) and fits(left, walltime):
                found.append(entry)
            if len(found) == room:
                self._timed = True  # perhaps: it has not been looked at any further
                break
        for entry in found:
            self.pending_task_queue.remove(entry)
        return [entry[2] for entry in found]

    def _command(self, interesting: set[bytes]) -> None:
        self.socks = {self.command_channel: zmq.POLLIN}
        self.process_command(None)


_NEVER = threading.Event()
"""Parsl sets it at a mismatch of Python versions, a check that is switched off."""
_CONTEXT = {"task_executor": {"f": "user_endpoint.engines.htex.parsl_worker.run"}}
"""The function that Parsl's own worker pool, where it is used, calls with a task's bytes."""


def _frames(receive: Callable[..., Any]) -> list[Any]:
    """Return the messages that have arrived, at most so many at a time."""
    found: list[Any] = []
    try:
        while len(found) < _TURN:
            found.append(receive(zmq.NOBLOCK))
    except zmq.Again:
        pass
    return found
