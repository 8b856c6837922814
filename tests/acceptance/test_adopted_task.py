"""A directory as Globus Compute's 4.19 leaves it is adopted and started, and a person's task runs through its template.

Template, schema and example mapping are those of the release itself: its wheel comes from the package index, by its
SHA-256, and nothing of it is installed. The template asks uv for an environment of the person's Python. A stand-in for
uv makes it from this host's, without the packages that uv would download: the endpoint's software is not among them.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mep_sdk import Client, Executor
from tests.support.accounts import LocalAccount, account
from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess

pytestmark = pytest.mark.root
RELEASE = "globus-compute-endpoint==4.19.0"
SHA256 = "434659e2d1155d0dd661421eebd83bc67ae598c688ed72efe67cd6ce1fb53734"
RESULT_S = 240
UV = """\
#!/bin/sh
# uv venv --allow-existing DIR --python VERSION, and uv pip install WORDS
echo "$@" >> "$HOME/uv.log"
case $1 in
    venv) exec python3 -m venv --without-pip "$3" ;;
    pip) exit 0 ;;
esac
exit 2
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the release's files for `configure`."""
    directory = tmp_path_factory.mktemp("release")
    wanted = directory / "wanted.txt"
    wanted.write_text(f"{RELEASE} --hash=sha256:{SHA256}\n")
    pip = Path(f"{sys.prefix}-build", "bin", "python")
    words = ["-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-r", wanted, "-d", directory]
    subprocess.run([pip, *words], check=True, timeout=300)
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        wheel.extractall(directory)
    return directory / "globus_compute_endpoint" / "endpoint" / "config"


def configured(release: Path, directory: Path) -> Path:
    """Lay out `directory` as its `configure --multi-user true --contact-email help@example.com` was seen to as root."""
    directory.mkdir(mode=0o700)
    mapping = directory / "example_identity_mapping_config.json"
    for name in ("user_config_template.yaml.j2", "user_config_schema.json", "user_environment.yaml", mapping.name):
        (directory / name).write_bytes((release / name).read_bytes())
        (directory / name).chmod(0o644 if name.endswith(".j2") else 0o600)
    keys = yaml.safe_load((release / "default_config.yaml").read_text())
    keys |= {"email": "help@example.com", "identity_mapping_config_path": str(mapping), "public": True}
    (directory / "config.yaml").write_text(yaml.safe_dump(keys))
    (directory / "config.yaml").chmod(0o600)
    return directory


@pytest.fixture(scope="module")
def person() -> Iterator[LocalAccount]:
    """A person with the stand-in for uv where the template looks for it."""
    with account() as made:
        uv = Path(made.home, ".local", "bin", "uv")
        uv.parent.mkdir(parents=True)
        uv.write_text(UV)
        uv.chmod(0o755)
        subprocess.run(["chown", "-R", f"{made.uid}:{made.gid}", str(Path(made.home, ".local"))], check=True)
        yield made


def where_it_runs() -> tuple[int, str]:
    import os
    import sys

    return os.geteuid(), sys.prefix


def test_a_task_runs_through_the_template_of_an_adopted_directory(
    release: Path, person: LocalAccount, tmp_path: Path, relay: RelayProcess
) -> None:
    theirs = configured(release, tmp_path / "site")
    with open_directory() as directory:
        mep = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu"), "MEP_RELAY_URL": relay.url})
        made = mep.json("adopt", str(theirs))
        mep("check", "site")
        mep("start", "site", "--detach")
        try:
            client = Client(relay_url=relay.url, token=relay.add_user(f"{person.name}@example.com"))
            options = {"worker_init": "touch $HOME/said"}
            with Executor(endpoint_id=made["endpoint_id"], client=client, user_endpoint_config=options) as executor:
                uid, prefix = executor.submit(where_it_runs).result(timeout=RESULT_S)
        finally:
            mep("stop", "site", "--kill")
    home = Path(pwd.getpwnam(person.name).pw_dir)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert uid == person.uid != os.geteuid()
    assert prefix == str(home / ".globus_compute" / "venvs" / f"py{version}")
    assert (home / "said").exists(), "the person's own worker_init did not run"
    assert (home / "uv.log").read_text().splitlines()[0].startswith("venv --allow-existing")
