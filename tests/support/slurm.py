"""A real Slurm for tests, from Debian's packages: munged, slurmctld and two slurmd on this host, and an end.

Needs root. Everything is below one directory of its own, on free ports; nothing of the system's own Slurm or
MUNGE is used or changed. Who runs Slurm's commands with SLURM_CONF=`Slurm.conf` speaks to this one.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from sitekit.ledger import Ledger, end_processes, start_ticks

from tests.support.waiting import until

NODES = ("n1", "n2")
PARTITIONS = ("cpu", "short")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_START_S = 60.0
_COMMAND_S = 30.0
_PMIX = Path("/usr/lib/x86_64-linux-gnu/pmix2/lib")
"""Where Debian's Slurm looks for libpmix.so, which Debian has in libpmix-dev alone: a link to libpmix.so.2."""
_WITH_PMIX = ("unshare", "--mount", "sh", "-c", f'mount --bind "$0" {_PMIX} && exec "$@"')
_CONF = """\
ClusterName=meptest
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={directory}/munge/socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
TmpFS={directory}/tmp-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=2
MinJobAge={min_job_age}
SlurmdParameters=config_overrides
InactiveLimit=0
Waittime=0
SlurmctldTimeout=30
SlurmdTimeout={node_timeout}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 State=UNKNOWN
PartitionName=cpu Nodes=n1,n2 MaxTime=60 Default=YES State=UP
PartitionName=short Nodes=n2 MaxTime=2 State=UP
"""


class SlurmFailed(Exception):
    """A daemon or command of the test's Slurm did not do its work; the text has its log's end."""


def free_ports(count: int) -> list[int]:
    """Return ports that have no listener now, and that the kernel gives to no outgoing connection."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: set[int] = set()
    while len(found) < count:
        port = low - 1 - secrets.randbelow(min(10_000, low - 2_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            found.add(port)
    return sorted(found)


class Slurm:
    """A running cluster of two nodes and two partitions (`cpu`: both nodes; `short`: n2, two minutes at most)."""

    def __init__(self, *, min_job_age_s: int = 300, node_timeout_s: int = 60) -> None:
        """`min_job_age_s`: how long the controller remembers a job that has ended. `node_timeout_s`: after how long a
        node that does not answer is taken to be down."""
        self._in_pmix: tuple[str, ...] = ()
        self.ledger = Ledger()
        self.directory = Path(tempfile.mkdtemp(prefix="meptest-slurm-"))
        self.ledger.path(self.directory)
        self.directory.chmod(0o755)
        self.conf = self.directory / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(3)
        self.conf.write_text(
            _CONF.format(
                directory=self.directory,
                host=socket.gethostname().split(".")[0],
                ports=ports,
                min_job_age=min_job_age_s,
                node_timeout=node_timeout_s,
            )
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment that a process needs to use this cluster's commands."""
        return {"PATH": _PATH, "SLURM_CONF": str(self.conf), "LANG": "C.UTF-8"}

    # --- start and end --------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle. Raises SlurmFailed."""
        try:
            self._start_munge()
            for name in ("state", *(f"spool-{node}" for node in NODES)):
                (self.directory / name).mkdir(mode=0o755)
            for node in NODES:
                (self.directory / f"tmp-{node}").mkdir()
                (self.directory / f"tmp-{node}").chmod(0o1777)
            self._daemon("slurmctld", "/usr/sbin/slurmctld", "-D", "-i", "-f", str(self.conf))
            for node in NODES:
                self.start_node(node)
            self.wait_for("idle nodes", lambda: self.nodes() == dict.fromkeys(NODES, "idle"))
        except BaseException:
            self.stop()
            raise

    def _start_munge(self) -> None:
        directory = self.directory / "munge"
        directory.mkdir(mode=0o755)
        (directory / "key").touch(mode=0o400)
        (directory / "key").write_bytes(secrets.token_bytes(128))
        for path in (directory, directory / "key"):
            shutil.chown(path, "munge", "munge")
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={directory / name}" for option, name in options.items()]
        self._daemon("munged", "/usr/sbin/munged", "--foreground", *words, user="munge", group="munge", extra_groups=[])
        self.wait_for("socket of munged", (directory / "socket").exists)

    def with_pmix(self) -> None:
        """Let later nodes start MPI ranks: their steps find libpmix.so where they look for it."""
        if not (_PMIX / "libpmix.so").exists():
            copy = self.directory / "pmix"
            shutil.copytree(_PMIX, copy, symlinks=True)
            (copy / "libpmix.so").symlink_to("libpmix.so.2")
            self._in_pmix = (*_WITH_PMIX, str(copy))

    def _daemon(self, name: str, *argv: str, **identity: object) -> None:
        with (self.directory / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
                **identity,  # type: ignore[call-overload] # user, group and extra_groups as they are
            )
        self.ledger.process(self.daemons[name].pid)

    def start_node(self, node: str) -> None:
        """Start the daemon of one node."""
        self._daemon(f"slurmd-{node}", *self._in_pmix, "/usr/sbin/slurmd", "-D", "-N", node, "-f", str(self.conf))

    def stop(self) -> None:
        """End every job, then the daemons by their pids, then remove the files on disk."""
        if self.daemons.get("slurmctld") is not None and self.daemons["slurmctld"].poll() is None:
            with contextlib.suppress(SlurmFailed, subprocess.TimeoutExpired):
                self.wait_for("end of jobs", self._end_jobs, 15)
        steps = self.steps()
        for name in reversed(self.daemons):
            process = self.daemons[name]
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.poll() is None:
                process.kill()
                process.wait()
        end_processes(steps, 0.5)
        self.daemons = {}
        self.ledger.clear()

    def _end_jobs(self) -> bool:
        """Kill the running jobs and cancel the rest; returns whether nothing was left to do."""
        jobs = self.jobs()
        running = [job for job, (_, state) in jobs.items() if state == "RUNNING"]
        with contextlib.suppress(SlurmFailed):  # it has ended by itself
            if running:
                self.run("scancel", "--signal=KILL", "--full", *running)
            if jobs:
                self.run("scancel", *jobs)
        return not jobs

    def steps(self) -> list[tuple[int, int]]:
        """Return (pid, start ticks) of every job step's own daemon of this cluster."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    name = (entry / "comm").read_text().strip()
                    ours = os.fsencode(self.directory) in (entry / "environ").read_bytes()
                    ticks = start_ticks(int(entry.name))
                    if name == "slurmstepd" and ours and ticks is not None:
                        found.append((int(entry.name), ticks))
        return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # --- an administrator's actions -------------------------------------------------------------------

    def run(self, *argv: str) -> str:
        """Run one of Slurm's commands as root and return its output. Raises SlurmFailed."""
        try:
            done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=_COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise SlurmFailed(f"{' '.join(argv)}: no answer within {_COMMAND_S} s") from error
        if done.returncode:
            raise SlurmFailed(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout

    def nodes(self) -> dict[str, str]:
        """Return the state of every node, empty while the controller does not answer."""
        try:
            lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=cpu").splitlines()
        except SlurmFailed:
            return {}
        return {line.split()[0]: line.split()[1] for line in lines if line.split()}

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return the user and the state of every job that has not ended."""
        lines = self.run("squeue", "--noheader", "--format=%i %u %T").splitlines()
        return {job: (user, state) for job, user, state in (line.split() for line in lines)}

    def show(self, job: str) -> dict[str, str]:
        """Return the controller's record of a job, including a recently ended one."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def all_jobs(self) -> list[str]:
        """Return every job that the controller remembers."""
        return self.run("squeue", "--noheader", "--states=all", "--format=%i").split()

    def wait_for(self, what: str, ready: Callable[[], object], timeout_s: float = _START_S) -> None:
        """Wait until `ready` is true; no answer is none. Raises SlurmFailed when a daemon ends or time is up."""

        def is_or_failed() -> bool:
            if self._is(ready):
                return True
            if gone := [name for name, process in self.daemons.items() if process.poll() is not None]:
                raise SlurmFailed(f"no {what}; ended: {gone}\n{self.logs()}")
            return False

        try:
            until(what, is_or_failed, timeout_s)
        except AssertionError as error:
            raise SlurmFailed(f"{error}\n{self.logs()}") from error

    @staticmethod
    def _is(ready: Callable[[], object]) -> bool:
        try:
            return bool(ready())
        except SlurmFailed:  # a busy machine
            return False

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = [*self.directory.glob("*.log"), *self.directory.glob("*.out"), *self.directory.glob("munge/log")]
        return "\n".join(f"--- {file.name}\n" + file.read_text(errors="replace")[-1500:] for file in files)
