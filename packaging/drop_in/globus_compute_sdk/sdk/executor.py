"""Executor, and the future that it returns."""

from __future__ import annotations

import mep_sdk
from globus_compute_sdk.sdk._task_failures import task_failure
from globus_compute_sdk.sdk.client import Client
from mep_sdk import TaskFuture as ComputeFuture

__all__ = ("ComputeFuture", "Executor")


class _Watcher:
    """Stands for the thread that brings results, which Parsl's GlobusComputeExecutor ends itself."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the executor's own shutdown has ended it."""


class Executor(mep_sdk.Executor):
    """MEP's Executor. Its futures raise the exceptions of tasks as TaskExecutionFailed too."""

    _client_type = Client

    _task_failure = staticmethod(task_failure)

    def _get_result_watcher(self) -> _Watcher:
        return _Watcher()
