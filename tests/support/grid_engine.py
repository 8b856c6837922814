"""A real Grid Engine for tests, from Debian's packages: qmaster and execd on this host, and an end.

Needs root. Everything is in one directory of its own, on free ports; Debian's own cell is not used. Who runs qsub,
qstat and qdel with `GridEngine.env` speaks to this one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from sitekit.ledger import Ledger, end_processes, start_ticks

from tests.support.slurm import free_ports
from tests.support.waiting import until

ADMIN = "sgeadmin"
"""The account that Debian's package makes for the qmaster."""
QUEUE, ENVIRONMENT = "all.q", "smp"
_SHARED = Path("/usr/share/gridengine")
_SPOOL = "/usr/lib/gridengine"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_COMMAND_S = 60.0
_SLOTS = 8
_CONFIGURATION = {
    "min_uid": "100", "min_gid": "100", "load_report_time": "00:00:02", "mailer": "/bin/true",
    "execd_params": "INHERIT_ENV=false",
}  # fmt: skip
_SCHEDULER = {"schedule_interval": "0:0:1", "flush_submit_sec": "1", "flush_finish_sec": "1"}
_UNLIMITED = (
    "s_rt h_rt s_cpu h_cpu s_fsize h_fsize s_data h_data s_stack h_stack s_core h_core s_rss h_rss s_vmem h_vmem"
)
_NONE = (
    "load_thresholds suspend_thresholds ckpt_list prolog epilog starter_method suspend_method resume_method "
    "terminate_method owner_list user_lists xuser_lists subordinate_list complex_values projects xprojects calendar"
)
_QUEUE = {
    "qname": QUEUE, "hostlist": "localhost", "seq_no": "0", "nsuspend": "1", "suspend_interval": "00:05:00",
    "priority": "0", "min_cpu_interval": "00:05:00", "processors": "UNDEFINED", "qtype": "BATCH",
    "pe_list": ENVIRONMENT, "rerun": "FALSE", "slots": str(_SLOTS), "tmpdir": "/tmp", "shell": "/bin/sh",
    "shell_start_mode": "posix_compliant", "notify": "00:00:60", "initial_state": "default",
    **dict.fromkeys(_NONE.split(), "NONE"), **dict.fromkeys(_UNLIMITED.split(), "INFINITY"),
}  # fmt: skip
_PARALLEL = {
    "pe_name": ENVIRONMENT, "slots": "999", "user_lists": "NONE", "xuser_lists": "NONE", "start_proc_args": "NONE",
    "stop_proc_args": "NONE", "allocation_rule": "$pe_slots", "control_slaves": "FALSE", "job_is_first_task": "TRUE",
    "urgency_slots": "min", "accounting_summary": "FALSE", "qsort_args": "NONE",
}  # fmt: skip


class GridEngineFailed(Exception):
    """A daemon or command of the test's Grid Engine did not do its work; the text has its log's end."""


def _changed(text: str, values: dict[str, str]) -> str:
    """Return a configuration with other values, one `key value` in each line."""
    lines = [line for line in text.splitlines() if line.split(" ")[0] not in values]
    return "\n".join([*lines, *(f"{key} {value}" for key, value in values.items())]) + "\n"


class GridEngine:
    """A running cell with one host, one queue (`all.q`) and the parallel environment `smp`."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.directory = Path(tempfile.mkdtemp(prefix="meptest-sge-"))
        self.ledger.path(self.directory)
        self.directory.chmod(0o755)
        self.root = self.directory / "root"
        self.ports = free_ports(2)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def variables(self) -> dict[str, str]:
        """What user endpoints need in their environment."""
        return {
            "SGE_ROOT": str(self.root), "SGE_CELL": "cell", "SGE_QMASTER_PORT": str(self.ports[0]),
            "SGE_EXECD_PORT": str(self.ports[1]),
        }  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        """The environment that a process needs to use this cell's commands."""
        return {"PATH": _PATH, "LANG": "C.UTF-8", **self.variables}

    def start(self) -> None:
        """Make the cell, start the daemons and wait until the queue takes jobs. Raises GridEngineFailed."""
        try:
            self._make_cell()
            self._daemon("sge_qmaster")
            until("an answer of the qmaster", lambda: self._answers("qconf", "-sconf"))
            self._configure()
            self._daemon("sge_execd")
            until("a queue that takes jobs", self._takes_jobs)
        except BaseException:
            self.stop()
            raise

    def _make_cell(self) -> None:
        common = self.root / "cell/common"
        for one in (common, *(self.directory / name for name in ("qmaster/job_scripts", "execd", "spooldb"))):
            one.mkdir(parents=True)
        for name in ("bin", "lib", "utilbin"):
            (self.root / name).symlink_to(Path("/var/lib/gridengine") / name)
        (self.root / "util").symlink_to(_SHARED / "util")
        (common / "act_qmaster").write_text("localhost\n")
        (common / "host_aliases").write_text(f"localhost {' '.join({socket.gethostname(), socket.getfqdn()})}\n")
        bootstrap = (_SHARED / "default-bootstrap").read_text().replace("/var/spool/gridengine", str(self.directory))
        (common / "bootstrap").write_text(_changed(bootstrap, {"admin_user": ADMIN, "ignore_fqdn": "true"}))
        text = (_SHARED / "default-configuration").read_text()
        values = {**_CONFIGURATION, "execd_spool_dir": str(self.directory / "execd")}
        (self.directory / "configuration").write_text(_changed(text, values))
        admin = pwd.getpwnam(ADMIN)
        for path in [self.directory, *self.directory.rglob("*")]:
            os.chown(path, admin.pw_uid, admin.pw_gid, follow_symlinks=False)
        self._as_admin("spoolinit", "berkeleydb", "libspoolb", str(self.directory / "spooldb"), "init")
        resources = _SHARED / "util/resources"
        for kind, value in (
            ("configuration", str(self.directory / "configuration")), ("complexes", str(resources / "centry")),
            ("usersets", str(resources / "usersets")), ("managers", "root"), ("managers", ADMIN),
        ):  # fmt: skip
            self._as_admin("spooldefaults", kind, value)

    def _as_admin(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [f"{_SPOOL}/{program}", *words], env=self.env, user=ADMIN, group=ADMIN, extra_groups=[], cwd="/",
            capture_output=True, text=True, timeout=_COMMAND_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise GridEngineFailed(f"{program} {' '.join(words)}: {done.stdout}{done.stderr}")

    def _configure(self) -> None:
        self.run("qconf", "-as", "localhost")
        scheduler = _changed(self.run("qconf", "-ssconf"), _SCHEDULER)
        for option, name, text in (
            ("-Msconf", "scheduler", scheduler), ("-Ap", "parallel", _changed("", _PARALLEL)),
            ("-Aq", "queue", _changed("", _QUEUE)),
        ):  # fmt: skip
            (self.directory / name).write_text(text.lstrip())
            self.run("qconf", option, str(self.directory / name))

    def _daemon(self, name: str) -> None:
        with (self.directory / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [f"/usr/sbin/{name}"], env={**self.env, "SGE_ND": "1"}, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, cwd="/", start_new_session=True,
            )  # fmt: skip
        self.ledger.process(self._daemons[name].pid)

    def _answers(self, *words: str) -> bool:
        if gone := [name for name, process in self._daemons.items() if process.poll() is not None]:
            raise GridEngineFailed(f"ended: {gone}\n{self.logs()}")
        try:
            return bool(self.run(*words))
        except GridEngineFailed:
            return False

    def _takes_jobs(self) -> bool:
        """Whether the one line of the queue has a load, and no state."""
        if not self._answers("qstat", "-f"):
            return False
        lines = [line.split() for line in self.run("qstat", "-f").splitlines() if line.startswith(QUEUE)]
        return bool(lines) and len(lines[0]) == 5 and lines[0][3] != "-NA-"

    def run(self, *argv: str) -> str:
        """Run one of its commands as root and return its output. Raises GridEngineFailed."""
        try:
            done = subprocess.run(
                argv, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                timeout=_COMMAND_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise GridEngineFailed(f"{' '.join(argv)}: no answer within {_COMMAND_S} s") from error
        if done.returncode:
            raise GridEngineFailed(f"{' '.join(argv)}: {done.stdout}{done.stderr}")
        return done.stdout

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return the account and the state of every job that has not ended."""
        rows = [line.split() for line in self.run("qstat", "-u", "*").splitlines()[2:]]
        return {row[0]: (row[3], row[4]) for row in rows if len(row) > 4}

    def stop(self) -> None:
        """End every job, then the daemons by their pids, then remove the files on disk."""
        if self._daemons:
            with contextlib.suppress(GridEngineFailed, AssertionError):
                if self.jobs():
                    self.run("qdel", "-f", "-u", "*")
                until("end of the jobs", lambda: not self.jobs(), 20, unready=(GridEngineFailed,))
        shepherds = self._shepherds()
        for process in reversed(self._daemons.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()
        end_processes(shepherds, 0.5)
        self._daemons = {}
        self.ledger.clear()

    def _shepherds(self) -> list[tuple[int, int]]:
        """Return (pid, start ticks) of the processes that hold this cell's jobs."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "comm").read_text().startswith("sge_shepherd"):
                    ticks = start_ticks(int(entry.name))
                    if os.fsencode(self.directory) in (entry / "environ").read_bytes() and ticks is not None:
                        found.append((int(entry.name), ticks))
        return found

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = [*self.directory.glob("*.out"), *self.directory.glob("**/messages")]
        return "\n".join(f"--- {file.name}\n" + file.read_text(errors="replace")[-1500:] for file in files)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
