"""The site of a campaign: small disks, a link that can be cut and frozen, one person with several executors."""

from __future__ import annotations

import os
import secrets
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
from tests.support.campus import SCHEMA_VALUE, TEMPLATE_TEXT
from tests.support.link_proxy import LinkProxy

PAM_SERVICES = Path("/etc/pam.d")


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

    def __init__(self, site: Site, endpoint: Endpoint, account: Account, proxy: FreezableProxy, client: Client) -> None:
        self.site, self.endpoint, self.account, self.proxy, self.client = site, endpoint, account, proxy, client
        self.effects = site.root / "effects"

    def executor(self, project: str, engine: str, attempts: int, idle: int = 0) -> Executor:
        """Return a new executor of the one client. Its user endpoint ends after `idle` heartbeats, 0 for never."""
        return Executor(
            endpoint_id=self.endpoint.id,
            client=self.client,
            user_endpoint_config={"project": project, "engine": engine, "idle": idle},
            max_attempts=attempts,
        )

    def left(self) -> list[str]:
        """Return what is left of people's processes and of mounts once the endpoint has stopped."""
        words = [f"process {pid}" for pid in of_account(self.account.uid)]
        words += [f"record {file.name}" for file in self.endpoint.runtime_dir.glob("keepers/*")]
        for line in Path("/proc/mounts").read_text().splitlines():
            where = line.split()[1]
            if where.startswith(str(self.site.root)) and where not in self.disks:
                words.append(f"mount {where}")
        for folder, _, _ in os.walk("/sys/fs/cgroup"):
            if f"mep-{self.endpoint.name}" in folder:
                words.append(f"control group {folder}")
        return words

    @property
    def disks(self) -> tuple[str, str]:
        """The two small disks: the relay's state and the person's home."""
        return str(self.site.relay.state), str(self.account.home)


def _mount(stack: ExitStack, where: Path, uid: int, gid: int, mode: str) -> None:
    owner = f"uid={uid},gid={gid},mode={mode}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=96m,{owner}", "none", str(where)], check=True)
    stack.callback(subprocess.run, ["umount", "-l", str(where)], check=False)


@contextmanager
def make_campus(name: str = "faults") -> Iterator[Campus]:
    """A running endpoint of a site of its own."""
    with ExitStack() as stack:
        site = stack.enter_context(Site("mepbench-faults"))
        account = site.account(f"mepbench-{secrets.token_hex(4)}")
        relay_state = site.relay.state.stat()
        disks = stack.enter_context(ExitStack())
        _mount(disks, site.relay.state, relay_state.st_uid, relay_state.st_gid, "0700")
        _mount(disks, Path(account.home), account.uid, account.gid, "0700")
        (site.root / "effects").mkdir(mode=0o1777)
        (site.root / "effects").chmod(0o1777)
        site.start_relay()
        disks.callback(site.relay.stop)
        service = PAM_SERVICES / account.name
        disks.callback(service.unlink, missing_ok=True)
        service.write_text("".join(f"{kind} required pam_permit.so\n" for kind in ("auth", "account", "session")))
        endpoint = site.endpoint(name, site.relay.add_person(ADMIN))
        disks.callback(endpoint.stop)
        endpoint.add_config("caps:\n  max_user_endpoints_per_user: 100\n")
        endpoint.add_config(f"pam:\n  enable: true\n  service_name: {service.name}\n")
        endpoint.write(MAPPING, expression_mapping(("person@example\\.edu", account.name)))
        endpoint.write(TEMPLATE, TEMPLATE_TEXT.replace("WORKPLACE", site.workplace))
        endpoint.write(SCHEMA, SCHEMA_VALUE)
        endpoint.register_again()
        proxy = stack.enter_context(FreezableProxy.for_endpoint(site.root / "var" / name / "registration.json"))
        person = site.relay.add_person("person@example.edu")
        endpoint.start()
        yield Campus(site, endpoint, account, proxy, Client(relay_url=person.relay_url, token=person.token))
