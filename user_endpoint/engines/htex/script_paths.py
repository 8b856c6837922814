"""Parsl's providers, with the paths of their scripts quoted.

Parsl puts the path of a block's script into a command line as it is, and those of its output into the script's
directives. Both are below the person's home directory, whose name may have a space, a quote, `&`, `(`, `[` or `$` in
it. Called by provider.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from typing import Any

from user_endpoint.engines.htex.parsl_import import light_parsl

with light_parsl():
    import parsl.jobs.states
    import parsl.providers
    import parsl.providers.errors
    from parsl.providers.cluster_provider import ClusterProvider

_START = """\
echo - >"$1.ec" && { { bash "$1" >"$1.out" 2>"$1.err"; echo $? >"$1.ec"; } >/dev/null 2>&1 & echo $!; }
"""
_PLAIN = re.compile(r"[\w@+=:,./-]*")
_QUOTED = re.compile(r"""'[^']*'|"[^"]*\"""")
_WITHOUT_HERE_DOCUMENT = ("SimpleLauncher", "SingleNodeLauncher", "WrappedLauncher")
"""The other launchers write the workers' command into a file by a here-document, in which the shell expands it once
more, and name that file unquoted."""


def with_quoted_paths(kind: Any) -> Any:
    """Return the class `kind` of provider, or one below it that quotes."""
    if kind is parsl.providers.LocalProvider:
        return LocalProvider
    if issubclass(kind, ClusterProvider):
        return type(kind.__name__, (_Quoting, kind), {})
    return kind


def launcher_with_quoted_paths(kind: Any) -> Any:
    """Return the class `kind` of launcher, or one below it whose here-document leaves quoted words as they are."""
    if kind.__name__ in _WITHOUT_HERE_DOCUMENT:
        return kind

    def call(self: Any, command: str, tasks_per_node: int, nodes_per_block: int, script_dir: str = "") -> str:
        before, where = "", script_dir
        if not _PLAIN.fullmatch(script_dir):
            before, where = f"cd {shlex.quote(script_dir)} || exit\n", "."
        return before + str(kind.__call__(self, _escaped(command), tasks_per_node, nodes_per_block, where))

    return type(kind.__name__, (kind,), {"__call__": call})


def _escaped(command: str) -> str:
    """Return a command as a here-document has it: what single quotes protect is escaped besides."""
    return _QUOTED.sub(lambda word: re.sub(r"([\\$`])", r"\\\1", word[0]) if word[0][0] == "'" else word[0], command)


class LocalProvider(parsl.providers.LocalProvider):
    """Blocks on this host."""

    def submit(self, command: str, tasks_per_node: int, job_name: str = "parsl.localprovider") -> str:
        """Start a block and return its process id. Raises SubmitException."""
        name = f"{job_name}.{time.time()}"
        path = os.path.abspath(f"{self.script_dir}/{name}.sh")  # noqa: PTH100 - as Parsl has it
        launched = self.launcher(command, tasks_per_node, self.nodes_per_block, self.script_dir)
        write: Any = self._write_submit_script
        write(f"{self.worker_init}\nexport JOBNAME={shlex.quote(name)}\n{launched}", path)
        try:
            said = subprocess.run(
                ["/bin/bash", "-c", _START, "bash", path],
                capture_output=True,
                text=True,
                timeout=self.cmd_timeout,
                check=True,
                process_group=0,  # by which a block is cancelled
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            failed: Any = parsl.providers.errors.SubmitException
            raise failed(name, f"the block's shell cannot be started: {error}") from error
        job_id = said.strip()
        status = parsl.jobs.states.JobStatus(parsl.jobs.states.JobState.RUNNING)
        self.resources[job_id] = {"job_id": job_id, "status": status, "remote_pid": int(job_id), "script_path": path}
        return job_id


class _Quoting:
    """Before a provider of batch jobs among a class's bases: quotes in command lines and in directives."""

    script_dir: str | None
    """None while the provider is being made."""

    def execute_wait(self, cmd: str, timeout: Any = None) -> Any:
        """Run a command of the scheduler's, with the script's path quoted."""
        directory = os.path.abspath(self.script_dir or "")  # noqa: PTH100 - as Parsl has it
        if self.script_dir and not _PLAIN.fullmatch(directory):
            cmd = re.sub(re.escape(directory) + r"/[\w@+=:,./-]+", lambda path: shlex.quote(path[0]), cmd)
        return super().execute_wait(cmd, timeout)  # type: ignore[misc] # the provider's

    def _write_submit_script(self, template: str, path: str, job_name: str, configs: dict[str, Any]) -> Any:
        values = {name: _in_directive(value) if name.endswith("_path") else value for name, value in configs.items()}
        return super()._write_submit_script(template, path, job_name, values)  # type: ignore[misc] # as above


def _in_directive(path: Any) -> Any:
    """Return a path as a scheduler's directive has it: quoted where it must be, without patterns."""
    if not isinstance(path, str) or _PLAIN.fullmatch(path):
        return path
    quote = '"' if "'" in path else "'"
    return f"{quote}{path.replace('%', '%%')}{quote}"
