"""Engines by the type names that templates use.

They run in the user endpoint, as the mapped user. They trust the rendered configuration, and no task. Only
`user_endpoint` may import them.

An engine's module is imported only when a template names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from mep_wire.errors import EngineFailed
from user_endpoint import settings
from user_endpoint.engines.base import Engine
from user_endpoint.run_directory import make_below
from user_endpoint.workers.fork_server import ServerHandle


class EngineContext(NamedTuple):
    """The parts of its user endpoint that an engine may use: directories, and the source of its first workers."""

    run_directory: str
    worker_log: str
    fork_server: Callable[[], ServerHandle]
    report_location: bool = False
    """Whether the site wants to know in which block, and job of its scheduler, a task runs."""


def make_engine(chosen: settings.EngineSettings, context: EngineContext) -> Engine:
    """Return the engine that `chosen` describes, not yet started. Raises EngineFailed."""
    match chosen:
        case settings.ProcessPoolSettings():
            from user_endpoint.engines.process_pool.engine import ProcessPoolEngine
            from user_endpoint.engines.start_journals import StartJournals

            return ProcessPoolEngine(
                server=_fork_servers(chosen, context),
                max_workers=chosen.max_workers,
                worker_log=context.worker_log,
                directory=_working_directory(chosen, context.run_directory),
                run_directory=context.run_directory,
                run_in_sandbox=chosen.run_in_sandbox,
                max_tasks_per_child=chosen.max_tasks_per_child or 0,
                notes=StartJournals(context.run_directory),
            )
        case settings.ThreadPoolSettings():
            from user_endpoint.engines.start_journals import StartJournals
            from user_endpoint.engines.thread_pool import ThreadPoolEngine

            return ThreadPoolEngine(
                max_workers=chosen.max_workers,
                notes=StartJournals(context.run_directory),
                data_directory=f"{context.run_directory}/data",
            )
        case settings.GlobusComputeSettings():  # and GlobusMPIEngine, which is one
            from user_endpoint.engines.htex.engine import HtexEngine
            from user_endpoint.library_log import forward_library_log

            forward_library_log()
            return HtexEngine(chosen, run_directory=context.run_directory, report_location=context.report_location)
    raise EngineFailed(reason=f"there is no engine {chosen.__struct_config__.tag}")


def _fork_servers(chosen: settings.ProcessPoolSettings, context: EngineContext) -> Callable[[], ServerHandle]:
    """Return the launcher of the processes that fork workers: the endpoint's own Python, or the person's."""
    python, setup = chosen.python or "", chosen.worker_init or ""
    if not python and not setup:
        return context.fork_server
    from user_endpoint.worker_staging import stage
    from user_endpoint.workers.external_launch import staged_server

    packages = stage(context.run_directory, copy=False)
    return lambda: staged_server(os.path.expanduser(python), setup, packages)  # noqa: PTH111 - no pathlib: the start is measured


def _working_directory(chosen: settings.ProcessPoolSettings, run_directory: str) -> str:
    """Return where tasks run, made if it is not there; empty for where this process is. Raises EngineFailed."""
    if chosen.working_dir is None and not chosen.run_in_sandbox:
        return ""
    directory = os.path.join(run_directory, os.path.expanduser(chosen.working_dir or "tasks_working_dir"))  # noqa: PTH111, PTH118 - no pathlib: the start is measured
    try:
        make_below(run_directory, directory)
    except OSError as error:
        raise EngineFailed(reason=f"working_dir: {error.strerror}", detail=directory) from error
    return directory
