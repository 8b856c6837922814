"""`mep self-diagnostic`, also installed as mep-diagnostic: the facts for a support request, in one file.

It runs this command line's own reading commands and takes the ends of logs. Keys, tokens and mapping files are not
read. The file is private, because logs name people.
"""

from __future__ import annotations

import gzip
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mep import __version__
from mep.cli.common import epilog

if TYPE_CHECKING:
    from mep.config.paths import Roots

_COMMAND_S = 120
_MAX_OUTPUT_BYTES = 1024 * 1024
_LOGS = ("endpoint.log", "audit.log", "tasks.log")


@click.command(
    "self-diagnostic",
    short_help="Write the facts for a support request into one file.",
    epilog=epilog("mep self-diagnostic", "mep self-diagnostic --print-only --endpoint-log-dirs site"),
)
@click.option("-p", "--print-only", is_flag=True, help="Print it instead of writing a file.")
@click.option("-k", "--log-kb", type=click.IntRange(0, 1 << 20), default=1024, show_default=True, metavar="NUMBER",
              help="How many kilobytes of the end of each log to take.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Name each part while it is made.")
@click.option("-c", "--config-dir", type=click.Path(file_okay=False), metavar="DIR",
              help="Directory of the endpoints' directories.")  # fmt: skip
@click.option("-l", "--endpoint-log-dirs", metavar="NAMES", help="Only these endpoints, with commas between them.")
@click.option("-r", "--recent-endpoints", type=click.IntRange(0), metavar="NUMBER",
              help="Only the endpoints with the newest logs.")  # fmt: skip
@click.option("-e", "--endpoint-uuid", hidden=True, help="Ignored: `mep check` asks the relay without a task.")
def self_diagnostic(
    print_only: bool, log_kb: int, verbose: bool, config_dir: str | None, endpoint_log_dirs: str | None,
    recent_endpoints: int | None, endpoint_uuid: str | None,
) -> None:  # fmt: skip
    """Collect versions, the state and check of each endpoint, and the ends of their logs.

    The file is made in the current directory, for its owner alone. Look through it before you send it: logs name
    people and accounts.
    """
    if config_dir is not None:
        os.environ["MEP_ETC"] = str(Path(config_dir).absolute())
    if endpoint_uuid is not None:
        click.echo("warning: --endpoint-uuid: is ignored: `mep check` asks the relay without a task", err=True)
    names = None if endpoint_log_dirs is None else [Path(one).name for one in endpoint_log_dirs.split(",") if one]
    parts = _parts(log_kb * 1024, names, recent_endpoints)
    if print_only:
        for title, text in parts:
            click.echo(f"== {title}\n{text.rstrip()}\n")
        return
    click.echo(_write(parts, verbose=verbose))


def _write(parts: Iterator[tuple[str, str]], *, verbose: bool) -> str:
    name = time.strftime("mep_diagnostic_%Y-%m-%d-%H-%M-%SZ.txt.gz", time.gmtime())
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as raw, gzip.open(raw, "wt", encoding="utf-8", errors="replace") as file:
        for title, text in parts:
            if verbose:
                click.echo(title, err=True)
            file.write(f"== {title}\n{text.rstrip()}\n\n")
    return str(Path(name).absolute())


def _parts(log_bytes: int, names: list[str] | None, recent: int | None) -> Iterator[tuple[str, str]]:
    from mep.config.paths import endpoint_paths, here, list_names

    roots = here()
    yield "versions", f"mep {__version__}\nPython {sys.version}\n{platform.platform()}\n{' '.join(os.uname())}"
    yield "mep list", _output("list")
    chosen = [name for name in list_names(roots) if names is None or name in names]
    if recent is not None:
        chosen = sorted(chosen, key=lambda name: _changed(roots, name), reverse=True)[:recent]
    for name in chosen:
        for command in ("status", "check"):
            yield f"mep {command} {name}", _output(command, name)
        state = endpoint_paths(roots, name).state_dir
        for log in _LOGS:
            if (state / log).exists():
                yield str(state / log), _end_of(state / log, log_bytes)


def _changed(roots: Roots, name: str) -> float:
    from mep.config.paths import endpoint_paths

    state = endpoint_paths(roots, name).state_dir
    return max((path.stat().st_mtime for log in _LOGS if (path := state / log).exists()), default=0.0)


def _output(*words: str) -> str:
    """Return what a command of ours prints, and its exit code if that is not 0."""
    argv = [sys.executable, "-I", "-m", "mep.cli", *words]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_COMMAND_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no end within {_COMMAND_S} s"
    text = done.stdout[:_MAX_OUTPUT_BYTES].decode("utf-8", "replace")
    return f"{text}exit code {done.returncode}\n" if done.returncode else text


def _end_of(path: Path, limit: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode("utf-8", "replace")
    except OSError as error:
        return f"{path}: {error.strerror}"
