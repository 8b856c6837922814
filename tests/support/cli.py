"""The command `mep` as a test calls it, with an endpoint's three roots in a private directory."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from sitekit import accounts

from tests.support.leftovers import MARK


@dataclass
class Cli:
    """`mep` as root with its roots in `directory`, or as `account` in that person's home directory."""

    directory: Path
    account: pwd.struct_passwd | None = None
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The command's environment."""
        base = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory),
            MARK: os.environ.get(MARK, ""),
        }
        if self.account is not None:
            return {**base, "HOME": self.account.pw_dir, **self.variables}
        if os.geteuid() != 0:
            return {**base, **self.variables}
        roots = {f"MEP_{name}": str(self.directory / name.lower()) for name in ("ETC", "VAR", "RUN")}
        return {**base, **roots, **self.variables}

    def path(self, kind: str, name: str, *more: str) -> Path:
        """Return a path in the endpoint's `etc`, `var` or `run` directory."""
        if self.account is None and os.geteuid() == 0:
            return self.directory.joinpath(kind, name, *more)
        home = Path(self.account.pw_dir) if self.account is not None else self.directory
        return home.joinpath(".mep", name, *({"etc": [], "var": ["state"], "run": ["run"]}[kind]), *more)

    def helpers(self, name: str) -> tuple[pwd.struct_passwd, pwd.struct_passwd]:
        """Return the accounts of manager and mapper that config.yaml names."""
        config = yaml.safe_load(self.path("etc", name, "config.yaml").read_text())
        return pwd.getpwnam(config["manager_account"]), pwd.getpwnam(config["mapper_account"])

    def __call__(self, *words: str, expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `mep WORDS` and check its exit code. Status may also say that something is wrong (8 to 10)."""
        identity: dict[str, Any] = {}
        if self.account is not None:
            identity = {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        done = subprocess.run(
            [sys.executable, "-I", "-m", "mep.cli", *words],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            cwd="/",
            check=False,
            **identity,
        )
        expected = {0, 8, 9, 10} if words[:1] == ("status",) and expect == 0 else {expect}
        assert done.returncode in expected, f"mep {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *words: str, expect: int = 0, **variables: str) -> Any:
        """Run `mep WORDS --json` and return its output."""
        return json.loads(self(*words, "--json", expect=expect, **variables).stdout)


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """A new directory that every account may enter, for the length of a `with` block."""
    path = Path(tempfile.mkdtemp(prefix="meptest-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        accounts.remove_helpers(f"{path}/")
        shutil.rmtree(path, ignore_errors=True)
