"""The site of a campaign: small disks, a link that can be cut and frozen, one person with several executors."""

from __future__ import annotations

import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from processes import of_account
from sitekit.accounts import Account
from sitekit.endpoint import MAPPING, SCHEMA, TEMPLATE, Endpoint, expression_mapping
from sitekit.site import ADMIN, Site

from mep_sdk import Client, Executor
from tests.support.accounts import unshared_uid
from tests.support.clocks import Clock, for_all_below
from tests.support.link_proxy import LinkProxy
from tests.support.slurm import Slurm, SlurmFailed

PAM_SERVICES = Path("/etc/pam.d")
SLURM = "Slurm"
"""The `engine` of blocks that are jobs of a Slurm of the campaign's own."""
TEMPLATE_TEXT = """\
display_name: {{ project }}
heartbeat_period: 5
idle_heartbeats_soft: {{ idle }}
engine:
{% if engine == "ProcessPoolEngine" %}
  type: ProcessPoolEngine
  max_workers: 2
{% else %}
  type: GlobusComputeEngine
  max_workers_per_node: 2
{% if engine == "Slurm" %}
  address: 127.0.0.1
  job_status_kwargs:
    strategy_period: 0.5
  provider:
    type: SlurmProvider
    partition: cpu
    exclusive: false
    cores_per_node: 2
    walltime: "00:30:00"
    init_blocks: 1
    max_blocks: 1
{% else %}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
{% endif %}
{% endif %}
"""
SCHEMA_VALUE = {
    "type": "object",
    "properties": {
        "project": {"type": "string"},
        "engine": {"enum": ["ProcessPoolEngine", "GlobusComputeEngine", SLURM]},
        "idle": {"type": "integer", "minimum": 0},
    },
    "additionalProperties": False,
}
STRAY = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Where no file of the account may be left."""
JOBS_END_S = 60.0


class FreezableProxy(LinkProxy):
    """A proxy that can also keep what passes."""

    def __init__(self, target: str) -> None:
        self.flows = threading.Event()
        self.flows.set()
        super().__init__(target)

    def _copy(self, source: Any, sink: Any) -> None:  # type: ignore[override]
        with suppress(OSError):
            while data := source.recv(65536):
                self.flows.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(2)


class Campus:
    """What the faults act upon."""

    def __init__(
        self,
        site: Site,
        endpoint: Endpoint,
        account: Account,
        proxy: FreezableProxy,
        client: Client,
        slurm: Slurm | None,
        clocks: Path | None,
    ) -> None:
        self.site, self.endpoint, self.account, self.proxy, self.client = site, endpoint, account, proxy, client
        self.slurm, self.clocks = slurm, clocks
        self.effects = site.root / "effects"
        self.began = site.root.stat().st_ctime if site.root.exists() else 0.0
        """An older file is of an account that had the same uid before."""

    def executor(self, project: str, engine: str, attempts: int, idle: int = 0) -> Executor:
        """Return a new executor of the one client. Its user endpoint ends after `idle` heartbeats, 0 for never."""
        return Executor(
            endpoint_id=self.endpoint.id,
            client=self.client,
            user_endpoint_config={"project": project, "engine": engine, "idle": idle},
            max_attempts=attempts,
        )

    def jobs(self) -> list[str]:
        """Return the account's jobs that run."""
        found = self.slurm.jobs() if self.slurm is not None else {}
        return sorted(job for job, (user, state) in found.items() if user == self.account.name and state == "RUNNING")

    def left(self) -> list[str]:
        """Return what is left of people's processes, jobs, files and mounts once the endpoint has stopped."""
        words = self._jobs_left()
        words += [f"process {one.pid} of {one.parent}: {one.words}" for one in of_account(self.account.uid)]
        words += [f"record {file.name}" for file in self.endpoint.runtime_dir.glob("keepers/*")]
        words += [f"file {file}" for file in self._files_left()]
        for line in Path("/proc/mounts").read_text().splitlines():
            where = line.split()[1]
            if where.startswith(str(self.site.root)) and where not in self.disks:
                words.append(f"mount {where}")
        for folder, _, _ in os.walk("/sys/fs/cgroup"):
            if f"mep-{self.endpoint.name}" in folder:
                words.append(f"control group {folder}")
        return words

    def _jobs_left(self) -> list[str]:
        if self.slurm is None:
            return []
        with suppress(SlurmFailed):
            self.slurm.wait_for("end of every job", lambda: not self.slurm.jobs(), JOBS_END_S)
        return [f"job {job}" for job in self.slurm.jobs()]

    def _files_left(self) -> Iterator[Path]:
        """The account's files outside its home, and sockets and unfinished files everywhere in the site."""
        effects, home = str(self.effects), str(self.account.home)
        for top in (*STRAY, str(self.site.root)):
            for folder, folders, names in os.walk(top):
                if top != str(self.site.root):
                    folders[:] = [name for name in folders if Path(folder, name) != self.site.root]
                for file in (Path(folder, name) for name in (*names, *folders)):
                    with suppress(OSError):
                        found = file.lstat()
                        inside = str(file).startswith((effects, home))
                        odd = stat.S_ISSOCK(found.st_mode) or file.suffix in (".tmp", ".new", ".part")
                        ours = found.st_uid == self.account.uid and found.st_ctime >= self.began
                        if odd if inside else ours:
                            yield file

    @property
    def disks(self) -> tuple[str, str]:
        """The two small disks: the relay's state and the person's home."""
        return str(self.site.relay.state), str(self.account.home)


def _mount(stack: ExitStack, where: Path, size_mb: int, uid: int, gid: int, mode: str) -> None:
    owner = f"uid={uid},gid={gid},mode={mode}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,{owner}", "none", str(where)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(where)], check=False)


@contextmanager
def make_campus(
    name: str = "faults", *, jobs: bool = False, clocks: Path | None = None, disk_mb: int = 96
) -> Iterator[Campus]:
    """A running endpoint of a site of its own. `jobs`: with a Slurm. `disk_mb`: the size of the relay's disk and of the
    person's home. `clocks`: the folder of the clocks that relay and endpoint get."""
    with ExitStack() as stack:
        site = stack.enter_context(Site("mepbench-faults"))
        account = site.account(f"mepbench-{secrets.token_hex(4)}", uid=unshared_uid())  # containers may share /dev/shm
        relay_state = site.relay.state.stat()
        disks = stack.enter_context(ExitStack())
        _mount(disks, site.relay.state, disk_mb, relay_state.st_uid, relay_state.st_gid, "0700")
        _mount(disks, Path(account.home), disk_mb, account.uid, account.gid, "0700")
        (site.root / "effects").mkdir(mode=0o1777)
        (site.root / "effects").chmod(0o1777)
        if clocks is not None:
            site.relay.env |= Clock(clocks, "relay").env
        slurm = stack.enter_context(Slurm()) if jobs else None
        site.start_relay()
        disks.callback(site.relay.stop)
        service = PAM_SERVICES / account.name
        disks.callback(service.unlink, missing_ok=True)
        service.write_text("".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session")))
        endpoint = site.endpoint(name, site.relay.add_person(ADMIN))
        disks.callback(endpoint.stop)
        if clocks is not None:
            endpoint.before = for_all_below(Clock(clocks, "endpoint"), stack, site.ledger)
        endpoint.add_config("caps:\n  max_user_endpoints_per_user: 100\n")
        endpoint.add_config(f"pam:\n  enable: true\n  service_name: {service.name}\n")
        if slurm is not None:
            endpoint.write("user_environment.yaml", {"SLURM_CONF": str(slurm.conf)})  # JSON is YAML
        endpoint.write(MAPPING, expression_mapping(("person@example\\.edu", account.name)))
        endpoint.write(TEMPLATE, TEMPLATE_TEXT)
        endpoint.write(SCHEMA, SCHEMA_VALUE)
        endpoint.register_again()
        proxy = stack.enter_context(FreezableProxy.for_endpoint(site.root / "var" / name / "registration.json"))
        person = site.relay.add_person("person@example.edu")
        endpoint.start()
        client = Client(relay_url=person.relay_url, token=person.token)
        yield Campus(site, endpoint, account, proxy, client, slurm, clocks)
