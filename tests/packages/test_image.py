"""The relay's container image: built by buildah from the Containerfile, checked as an OCI layout, and run with a task.

The base image is a Debian that debootstrap made: no registry of images is needed. buildah isolates by chroot, and keeps
layers as plain directories, so that the test runs where no engine does.
"""

from __future__ import annotations

import contextlib
import getpass
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sitekit import accounts as site_accounts
from sitekit.site import Person, Site

from mep_sdk import Executor
from tests.support import accounts, debian, package_builds, waiting
from tests.support.postgres import Postgres

DEPLOY = package_builds.ROOT / "packaging" / "deploy"
NUMBER = 990
"""The account's number in the image."""
BASE = ("ca-certificates", "libpam0g", f"python{package_builds.RUNNING}", "systemd-standalone-sysusers")
"""What the packages depend on: apt-get then downloads nothing."""
STATE = "/var/lib/mep-relay"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, place: Path) -> None:
        self._words = [
            "buildah",
            "--root",
            str(place / "root"),
            "--runroot",
            str(place / "run"),
            "--storage-driver",
            "vfs",
        ]
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(place)}

    def __call__(self, *words: str | Path, timeout_s: float = 600) -> str:
        """Run a command of buildah's to its end; return its output."""
        argv = [*self._words, *map(str, words)]
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=self._environment, timeout=timeout_s
        )
        assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def start(self, *words: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a command of buildah's."""
        with log.open("ab") as out:
            return subprocess.Popen([*self._words, *words], stdout=out, stderr=out, env=self._environment)


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Buildah with the image mep-relay."""
    place = tmp_path_factory.mktemp("buildah")
    tool = Buildah(place)
    make_base(tool, place)
    context = place / "context"
    shutil.copytree(DEPLOY, context / "packaging" / "deploy")
    shutil.copytree(package_builds.built(tmp_path_factory), context / "dist")
    words = ("--build-arg", "BASE=localhost/base", "--build-arg", f"ABI=py{package_builds.RUNNING.replace('.', '')}")
    tool("build", *words, "-f", context / "packaging/deploy/Containerfile", "-t", "mep-relay", context)
    yield tool
    tool("rm", "--all")
    shutil.rmtree(place)


def make_base(tool: Buildah, place: Path) -> None:
    """Make the image localhost/base of a bootstrapped Debian."""
    archive = place / "base.tar"
    debian.pack(debian.system(debian.running_release(), BASE), archive)
    container = tool("from", "scratch")
    tool("add", container, archive, "/")
    tool("commit", "--rm", container, "localhost/base")
    archive.unlink()


def test_the_image_says_how_it_runs(buildah: Buildah) -> None:
    config = json.loads(buildah("inspect", "--type", "image", "mep-relay"))["OCIv1"]["config"]
    assert config["User"] == f"{NUMBER}:{NUMBER}"
    assert (config["Entrypoint"], config["Cmd"]) == (["/usr/local/bin/relay-entry"], ["serve"])
    assert {port.partition("/")[0] for port in config["ExposedPorts"]} == {"8650", "8651"}
    assert (set(config["Volumes"]), config["StopSignal"]) == ({STATE}, "SIGTERM")


def test_it_is_an_oci_layout_with_every_blob_as_its_digest_says(buildah: Buildah, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    buildah("push", "--format", "oci", "mep-relay", f"oci:{layout}:1")
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(layout, listed, "application/vnd.oci.image.manifest.v1+json"))
    config = json.loads(blob(layout, manifest["config"], "application/vnd.oci.image.config.v1+json"))
    layers = [gzip.decompress(blob(layout, each, LAYER)) for each in manifest["layers"]]
    digests = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
    assert config["rootfs"]["diff_ids"] == digests, "the base, and one layer over it"
    with tarfile.open(fileobj=io.BytesIO(layers[-1])) as archive:
        names = archive.getnames()
    assert {"usr/bin/mep-relay", "usr/local/bin/relay-entry", "opt/mep/extras/postgresql"} <= set(names)
    assert not [name for name in names if name.startswith("tmp/") or name.endswith(".deb")]
    assert config["os"] == "linux"


def blob(layout: Path, descriptor: dict[str, Any], kind: str) -> bytes:
    """Return the content that a descriptor names, which must be of this media type."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    content = (layout / "blobs" / algorithm / digest).read_bytes()
    assert (descriptor["mediaType"], descriptor["size"]) == (kind, len(content))
    assert hashlib.new(algorithm, content).hexdigest() == digest
    return content


class Container:
    """A container of the image, with its state in a directory of the host's, as a volume is."""

    def __init__(self, tool: Buildah, place: Path, *mounts: str) -> None:
        self._tool, self._log = tool, place / "log"
        self.state = place / "state"
        self.state.mkdir(mode=0o700)
        os.chown(self.state, NUMBER, NUMBER)
        self._name = tool("from", "mep-relay")
        self._mounts = [word for each in (f"{self.state}:{STATE}", *mounts) for word in ("-v", each)]

    def run(self, *words: str) -> str:
        """Run the image's entry with these words; return the output."""
        return self._tool("run", *self._mounts, self._name, "--", "/usr/local/bin/relay-entry", *words)

    @contextlib.contextmanager
    def serving(self) -> Iterator[dict[str, Any]]:
        """The relay, as the image's entry and command start it, on free ports: its addresses."""
        words = ["run", *self._mounts, self._name, "--", "/usr/local/bin/relay-entry", "serve"]
        process = self._tool.start(*words, "--port", "0", "--link-port", "0", log=self._log)
        try:
            yield waiting.until(
                "the relay answers",
                lambda: json.loads((self.state / "relay.json").read_text()),
                unready=(OSError, ValueError),
                details=self._log.read_text,
            )
        finally:
            process.terminate()
            process.wait(60)
            self._tool("rm", self._name)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_task_goes_through_a_relay_that_runs_from_it(buildah: Buildah, tmp_path: Path, database: str) -> None:
    """With PostgreSQL it reads the files that compose.yaml mounts: a configuration, and a password."""
    with contextlib.ExitStack() as stack:
        mounts = postgresql(stack, tmp_path) if database == "postgresql" else []
        container = Container(buildah, tmp_path, *mounts)
        found = stack.enter_context(container.serving())
        assert (container.state / "relay.db").exists() is (database == "sqlite")
        text = container.run("user", "add", "--state", STATE, "alice@example.edu", "--json")
        own = stack.enter_context(accounts.account())
        site = stack.enter_context(Site("meptest-image", site_accounts.existing(own.name)))
        url = found["url"].replace("0.0.0.0", "127.0.0.1")
        person = Person("alice@example.edu", json.loads(text)["token"], url)
        endpoint = site.endpoint("own", person)
        endpoint.start()
        with Executor(endpoint_id=endpoint.id, relay_url=url, token=person.token) as executor:
            assert executor.submit(getpass.getuser).result(60) == own.name, site.logs()


def postgresql(stack: contextlib.ExitStack, tmp_path: Path) -> list[str]:
    """Start a server; return the mounts of the files that name it."""
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meptest-")))
    server = stack.enter_context(Postgres(place))
    stack.enter_context(server.database())
    password, settings = tmp_path / "database-password", tmp_path / "mep-relay.toml"
    password.write_text(server.password)
    password.chmod(0o400)
    os.chown(password, NUMBER, NUMBER)
    name = server.do("SELECT datname FROM pg_database WHERE datname LIKE 't%' AND NOT datistemplate")[0][0]
    settings.write_text(
        f'database = "postgresql://mep@127.0.0.1:{server.port}/{name}"\n'
        'database_password = "/run/secrets/database-password"\n'
    )
    return [f"{settings}:/etc/mep-relay.toml:ro", f"{password}:/run/secrets/database-password:ro"]
