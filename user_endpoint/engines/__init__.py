"""Engines by the type names that templates use. An engine's module is imported only when a template names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from mep_wire.errors import EngineFailed
from user_endpoint import settings
from user_endpoint.engines.base import Engine
from user_endpoint.workers.forkserver import Server


class EnginePlace(NamedTuple):
    """What an engine may use of its user endpoint's: directories, and where its first worker processes come from."""

    run_directory: str
    worker_log: str
    fork_server: Callable[[], Server]


def make_engine(chosen: settings.EngineSettings, place: EnginePlace) -> Engine:
    """Return the engine that `chosen` describes, not yet started. Raises EngineFailed."""
    match chosen:
        case settings.ProcessPoolEngine():
            from user_endpoint.engines.process_pool import ProcessPoolEngine

            return ProcessPoolEngine(
                server=place.fork_server,
                max_workers=chosen.max_workers,
                max_retries=chosen.max_retries_on_system_failure,
                worker_log=place.worker_log,
            )
        case settings.ThreadPoolEngine():
            from user_endpoint.engines.thread_pool import ThreadPoolEngine

            return ThreadPoolEngine(max_workers=chosen.max_workers)
        case settings.GlobusComputeEngine():
            from user_endpoint.engines.htex import GlobusComputeEngine

            return GlobusComputeEngine(chosen, run_directory=place.run_directory)
    raise EngineFailed(reason=f"there is no engine {type(chosen).__name__}")
