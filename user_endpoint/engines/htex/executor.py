"""Parsl's HighThroughputExecutor, driven without the DataFlowKernel and without a thread of its own.

Started by `blocks`, on its thread; once started, tasks are sent and reports received by the engine, on the user
endpoint's thread, which closes those sockets too; commands and scaling stay with `blocks`. No socket is ever used
from two threads at once.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import random
import re
import shlex
import socket as socket_module
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zmq

from mep_wire.errors import EngineFailed
from user_endpoint.engines.htex import containers, protocol
from user_endpoint.engines.htex.parsl_import import light_parsl
from user_endpoint.engines.htex.walltimes import STARTED_VARIABLE
from user_endpoint.run_directory import make_below
from user_endpoint.settings import GlobusComputeSettings, GlobusMPISettings

with light_parsl():
    from parsl.executors.high_throughput import manager_selector
    from parsl.executors.high_throughput.executor import HighThroughputExecutor

_HERE = Path(__file__).resolve().parent
_INTERCHANGE_START_S = 30.0
_COMMAND_S = 10.0
_SILENCE_S = 30.0
"""An interchange that does not answer for this long is as good as dead."""
POLL_MS = 1000
"""How often Parsl's parts look whether they should end. Messages wake them at once whatever it is."""


class InterchangeDied(Exception):
    """The interchange did not come up. `killed`: by a signal, so that nothing is said against another try."""

    def __init__(self, how: str, logs: str, *, killed: bool = False) -> None:
        self.killed = killed
        super().__init__(f"Parsl's interchange {how} (see {logs})")


class InterchangeClient(HighThroughputExecutor):
    """The executor. `settings` must have been checked; `addresses` are where workers look for this host."""

    def __init__(
        self,
        settings: GlobusComputeSettings,
        provider: Any,
        addresses: Sequence[str],
        prefetch: int,
        directory: Path,
        *,
        block_walltime_s: float | None = None,
        packages: str | None = None,
        begun_directory: str = "",
    ) -> None:
        ports = free_ports()
        loopback = list(addresses) == ["127.0.0.1"]
        super().__init__(
            label=re.sub(r"[^A-Za-z0-9_.-]", "_", settings.label)[:64],
            provider=provider,
            address=addresses[0] if loopback else None,
            loopback_address=settings.loopback_address,
            worker_port=settings.worker_port or (None if settings.worker_port_range else free_port(ports)),
            worker_port_range=settings.worker_port_range or ports,
            interchange_port_range=settings.interchange_port_range or ports,
            interchange_launch_cmd=[sys.executable, "-I", str(_HERE / "interchange_main.py")],
            launch_cmd=settings.launch_cmd,
            worker_debug=settings.worker_debug,
            cores_per_worker=settings.cores_per_worker,
            mem_per_worker=settings.mem_per_worker,
            max_workers_per_node=settings.max_workers_per_node,
            cpu_affinity=settings.cpu_affinity,
            available_accelerators=_names(settings.available_accelerators),
            prefetch_capacity=prefetch,
            heartbeat_threshold=settings.heartbeat_threshold,
            heartbeat_period=settings.heartbeat_period,
            drain_period=settings.drain_period,
            poll_period=POLL_MS,
            address_probe_timeout=settings.address_probe_timeout,
            worker_logdir_root=settings.worker_logdir_root,
            encrypted=settings.encrypted,
            manager_selector=getattr(manager_selector, settings.manager_selector.type)(),
        )
        self._settings, self._block_walltime_s = settings, block_walltime_s
        self._program = (
            f"{packages}/user_endpoint/engines/htex/worker_pool_main.py"
            if packages
            else str(_HERE / "worker_pool_main.py")
        )
        self.begun_directory = begun_directory
        self._unsent: deque[bytes] = deque()
        self.all_addresses = set(addresses)
        self.run_dir, self.run_id = str(directory), str(uuid.uuid4())
        self.jobs = provider
        self.jobs.script_dir = str(directory / "submit_scripts")
        self.working_directory = str(directory.parent / (settings.working_dir or "tasks_working_dir"))
        for needed in (self.logdir, self.jobs.script_dir, self.working_directory):
            make_below(str(directory.parent), needed)
        self.meanwhile: Callable[[], object] = lambda: None

    # --- start, on the blocks' thread -----------------------------------------------------------------

    def _start_result_queue_thread(self) -> None:
        """Start none: the engine reads the socket itself."""

    def _start_local_interchange_process(self) -> None:
        """Start the interchange and, while it loads, whatever `meanwhile` does: the first block.

        Raises InterchangeDied where it does not come up.
        """
        config = {
            "client_address": self.loopback_address,
            "client_ports": (self.outgoing_q.port, self.incoming_q.port, self.command_client.port),
            "interchange_address": self.address,
            "worker_port": self.worker_port,
            "worker_port_range": self.worker_port_range,
            "hub_address": None,
            "hub_zmq_port": None,
            "logdir": self.logdir,
            "heartbeat_threshold": self.heartbeat_threshold,
            "poll_period": self.poll_period,
            "logging_level": logging.DEBUG if self.worker_debug else logging.WARNING,
            "cert_dir": self.cert_dir,
            "manager_selector": self.manager_selector,
            "run_id": self.run_id,
            "log_config": None,
            "_check_python_mismatch": False,  # workers may have another Python: each task states its needs
        }
        for socket in (self.outgoing_q.zmq_socket, self.incoming_q.results_receiver):
            socket.linger = 0
        self.interchange_proc = subprocess.Popen(self.interchange_launch_cmd, stdin=subprocess.PIPE)
        assert self.interchange_proc.stdin is not None, "asked for"
        with contextlib.suppress(BrokenPipeError), self.interchange_proc.stdin as pipe:  # seen below where it has died
            pipe.write(pickle.dumps(config))
        if self.worker_port is not None and self.interchange_proc.poll() is None:
            self.meanwhile()
        self.worker_port = self._port_of_interchange()

    def _port_of_interchange(self) -> int:
        socket, deadline = self.command_client.zmq_socket, time.monotonic() + _INTERCHANGE_START_S
        # Before it has connected a question would block, for ever where it dies first.
        self._wait_for_interchange(socket, zmq.POLLOUT, deadline)
        try:
            socket.send_pyobj("WORKER_BINDS", zmq.NOBLOCK)
        except zmq.Again:
            raise self._death_of_interchange() from None
        self._wait_for_interchange(socket, zmq.POLLIN, deadline)
        port = int(socket.recv_pyobj())
        # It may have answered before its connection for tasks is up, and messages sent before that would be dropped.
        self._wait_for_interchange(self.outgoing_q.zmq_socket, zmq.POLLOUT, deadline)
        return port

    def _wait_for_interchange(self, socket: Any, event: int, deadline: float) -> None:
        while not socket.poll(100, event):
            if self.interchange_proc is None or self.interchange_proc.poll() is not None:
                raise self._death_of_interchange()
            if time.monotonic() > deadline:
                raise InterchangeDied(f"is not up after {_INTERCHANGE_START_S:g} s", self.logdir)

    def _death_of_interchange(self) -> InterchangeDied:
        """Return how it ended at its start. Its connection may end a moment before the process does."""
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self.interchange_proc.wait(1.0) if self.interchange_proc is not None else None
        killed = status is not None and status < 0
        how = f"was killed by signal {-status}" if status is not None and killed else f"ended with status {status}"
        return InterchangeDied(f"{how} at its start", self.logdir, killed=killed)

    def initialize_scaling(self) -> None:
        """Compose the launch command, where it is the site's own. Ours is composed for each block."""
        if self._settings.launch_cmd is not None:
            super().initialize_scaling()  # type: ignore[no-untyped-call] # Parsl's

    def _get_launch_command(self, block_id: str) -> str:
        if self._settings.launch_cmd is not None:
            return str(super()._get_launch_command(block_id))
        settings = self._settings
        options: dict[str, object] = {
            "addresses": ",".join(sorted(self.all_addresses)),
            "port": self.worker_port,
            "cert_dir": self.cert_dir or "",
            "logdir": self.worker_logdir,
            "block_id": block_id,
            "cores_per_worker": settings.cores_per_worker,
            "mem_per_worker": settings.mem_per_worker or 0,
            "max_workers_per_node": settings.max_workers_per_node or 0,
            "prefetch_capacity": self.prefetch_capacity,
            "hb_period": settings.heartbeat_period,
            "hb_threshold": settings.heartbeat_threshold,
            "drain_period": settings.drain_period or 0,
            "address_probe_timeout": settings.address_probe_timeout or 30,
            "cpu_affinity": settings.cpu_affinity,
            "accelerators": ",".join(self.available_accelerators),
            "working_dir": self.working_directory,
            "run_in_sandbox": int(settings.run_in_sandbox),
            "begun": self.begun_directory,
            "shared": int(settings.provider["type"] != "LocalProvider"),
            "block_walltime": self._block_walltime_s or 0,
        }
        if isinstance(settings, GlobusMPISettings):
            options |= {"mpi_launcher": settings.mpi_launcher, "max_workers_per_node": settings.max_workers_per_block}
        words = [shlex.quote(f"--{name}={value}") for name, value in options.items()]
        words.append(f"--block_started=${{{STARTED_VARIABLE}:-0}}")  # read by the block's own shell
        own = shlex.quote(sys.executable)
        # worker_init may have set it (see provider); ours may not be there on a node, which then needs one of its own
        python = f'"${{MEP_PYTHON:-$(test -x {own} && echo {own} || echo python3)}}"'
        inside = containers.PYTHON if settings.container_type else python
        command = " ".join([inside, shlex.quote(self._program), *words])
        return containers.in_container(settings, str(Path(self.run_dir).parent), command)

    # --- tasks, on the user endpoint's thread ---------------------------------------------------------

    def say(self, message: protocol.ToInterchange) -> None:
        """Send one message to the interchange. Never blocks: if it can't be sent yet, it waits for the next `flush`.

        Messages wait while the interchange has not connected, or has died. After a death `Restarted` follows, which
        decides about all messages meant for that interchange.
        """
        self._unsent.append(protocol.encode(message))
        self.flush()

    def flush(self) -> None:
        """Send waiting messages, as many as can be sent now."""
        with contextlib.suppress(zmq.Again):
            while self._unsent:
                self.outgoing_q.zmq_socket.send(self._unsent[0], zmq.NOBLOCK)
                self._unsent.popleft()

    def descriptor(self) -> int:
        """Return the descriptor that becomes readable when `hear` has something."""
        return int(self.incoming_q.results_receiver.fileno())

    def hear(self, limit: int) -> list[bytes]:
        """Return at most `limit` frames that have come, ours or pickled."""
        frames: list[bytes] = []
        socket = self.incoming_q.results_receiver
        try:
            while len(frames) < limit:
                frames.append(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return frames

    # --- nodes, on the blocks' thread -----------------------------------------------------------------

    def nodes(self) -> list[dict[str, Any]]:
        """Return the interchange's data on each node: block_id, tasks, idle_duration and more."""
        return list(self.command_client.run("MANAGERS", timeout_s=_COMMAND_S))  # type: ignore[no-untyped-call] # Parsl's

    def ask(self) -> None:
        """Ask the interchange for a sign of life. Raises one of SILENT."""
        self.command_client.run("WORKER_BINDS", timeout_s=_SILENCE_S)  # type: ignore[no-untyped-call] # Parsl's

    def kill(self) -> None:
        """Kill an interchange that does not answer."""
        if self.interchange_proc is not None:
            self.interchange_proc.kill()
            self.interchange_proc.wait()

    def hold(self, block_id: str) -> None:
        """Stop sending tasks to this block."""
        self._hold_block(block_id)  # type: ignore[no-untyped-call] # Parsl's

    # --- the end, on the blocks' thread ---------------------------------------------------------------

    def end_interchange(self, grace_s: float) -> None:
        """End the interchange, by force if it has not ended after `grace_s` seconds, and the way to command it."""
        process = self.interchange_proc
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout=grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if hasattr(self, "command_client"):
            self.command_client.close()  # type: ignore[no-untyped-call] # Parsl's

    # --- the end of tasks, on whichever thread has had their sockets ----------------------------------

    def close_task_sockets(self) -> None:
        """Close the sockets that `say` and `hear` use; unsent messages are dropped."""
        for name in ("outgoing_q", "incoming_q"):
            if hasattr(self, name):
                getattr(self, name).close()


def _names(accelerators: int | list[int | str]) -> list[str]:
    names = range(accelerators) if isinstance(accelerators, int) else accelerators
    return [str(name) for name in names]


def free_ports() -> tuple[int, int]:
    """Return a range of ports that the kernel does not give to outgoing connections.

    Inside that range, a socket that connects to a port without a listener can be given that very port, and
    connects to itself.
    """
    try:
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    below, above = (max(10_000, low - 12_000), low - 1), (high + 1, 65_535)
    return below if below[1] - below[0] >= above[1] - above[0] else above


def free_port(ports: tuple[int, int]) -> int:
    """Return a port of the range that currently has no listener. Raises EngineFailed."""
    for _ in range(100):
        port = random.SystemRandom().randrange(*ports)
        with socket_module.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise EngineFailed(reason=f"no free port between {ports[0]} and {ports[1]}")
