"""`mep self-diagnostic`, also installed as mep-diagnostic: the facts for a support request, in one file.

It runs this command line's own reading commands and takes the ends of logs. Keys, tokens and mapping files are not
read. The file is private, because logs name people.
"""

from __future__ import annotations

import contextlib
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
from mep.cli.common import complete_name, epilog, locate

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

_COMMAND_S = 120
_MAX_OUTPUT_BYTES = 1024 * 1024
_LOGS = ("endpoint.log", "audit.log", "tasks.log")


@click.command(
    "self-diagnostic",
    short_help="Write the facts for a support request into one file.",
    epilog=epilog("mep self-diagnostic", "mep self-diagnostic --print-only site"),
)
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("-p", "--print-only", is_flag=True, help="Print it instead of writing a file.")
@click.option("-k", "--log-kb", type=click.IntRange(0, 1 << 20), default=1024, show_default=True, metavar="NUMBER",
              help="How many kilobytes of the end of each log to take.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Name each part while it is made.")
@click.option("-c", "--config-dir", type=click.Path(file_okay=False), metavar="DIR",
              help="Directory of the endpoints' directories.")  # fmt: skip
@click.option("-l", "--endpoint-log-dirs", metavar="NAMES",
              help="Only these endpoints: names or ids, separated by commas.")  # fmt: skip
@click.option("-r", "--recent-endpoints", type=click.IntRange(0), metavar="NUMBER",
              help="Only the endpoints with the newest logs.")  # fmt: skip
@click.option("-e", "--endpoint-uuid", hidden=True, help="Ignored: `mep check` asks the relay without a task.")
def self_diagnostic(
    name: str | None, print_only: bool, log_kb: int, verbose: bool, config_dir: str | None,
    endpoint_log_dirs: str | None, recent_endpoints: int | None, endpoint_uuid: str | None,
) -> None:  # fmt: skip
    """Collect versions, the state and check of each endpoint, or only of NAME, and the ends of their logs.

    The file is made in the current directory, for its owner alone. Look through it before you send it: logs name
    people and accounts.
    """
    if config_dir is not None:
        os.environ["MEP_ETC"] = str(Path(config_dir).absolute())
    if endpoint_uuid is not None:
        click.echo("warning: --endpoint-uuid: is ignored: `mep check` asks the relay without a task", err=True)
    names = [] if name is None else [name]
    names += [Path(one).name for one in (endpoint_log_dirs or "").split(",") if one]
    parts = _parts(log_kb * 1024, _chosen(names, recent_endpoints))
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


def _chosen(names: list[str], recent: int | None) -> list[EndpointPaths]:
    """Return the endpoints with these names or ids, or all of them if there are none. Raises ConfigRefused."""
    from mep.cli.status_commands import require_endpoint
    from mep.config.paths import endpoint_paths, here, list_names

    roots = here()
    found = [locate(name)[0] for name in names] or [endpoint_paths(roots, name) for name in list_names(roots)]
    for where in found if names else ():
        require_endpoint(where)
    once = list({where.config_dir: where for where in found}.values())
    return once if recent is None else sorted(once, key=_changed, reverse=True)[:recent]


def _parts(log_bytes: int, chosen: list[EndpointPaths]) -> Iterator[tuple[str, str]]:
    yield "versions", f"mep {__version__}\nPython {sys.version}\n{platform.platform()}\n{' '.join(os.uname())}"
    yield "mep list", _output("list")
    for where in chosen:
        for command in ("status", "check"):
            yield f"mep {command} {where.name}", _output(command, where.name)
        for log in _LOGS:
            with contextlib.suppress(FileNotFoundError):
                yield str(where.state_dir / log), _end_of(where.state_dir / log, log_bytes)


def _changed(where: EndpointPaths) -> float:
    times = [0.0]
    for log in _LOGS:
        with contextlib.suppress(OSError):
            times.append((where.state_dir / log).stat().st_mtime)
    return max(times)


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
    """Return the end of a log, or why it can't be read. Raises FileNotFoundError."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"{path}: {error.strerror}"
