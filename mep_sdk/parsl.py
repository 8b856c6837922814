"""A Parsl executor with its workers behind an endpoint: `executors=["campus"]` of an app then runs there.

It is given to `parsl.Config` like any of Parsl's own. Needs Parsl, here and on the endpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from parsl.data_provider.staging import Staging
from parsl.executors.base import ParslExecutor
from parsl.utils import RepresentationMixin

from mep_sdk.batch import UuidLike
from mep_sdk.executor import Executor
from mep_sdk.futures import TaskFuture


class MepExecutor(ParslExecutor, RepresentationMixin):
    """Runs apps on an endpoint."""

    def __init__(
        self,
        endpoint_id: UuidLike | None = None,
        label: str = "mep",
        *,
        executor: Executor | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        storage_access: list[Staging] | None = None,
        working_dir: str | None = None,
        **options: Any,
    ) -> None:
        """Make an executor for `endpoint_id`; `label` is its name in `executors=[...]` of an app.

        `options` are those of mep_sdk.Executor. An `executor` in place of an endpoint stays open after Parsl has ended.
        An app's `parsl_resource_specification` is the task's; it may also have a `user_endpoint_config`.
        `storage_access` and `working_dir` are Parsl's, for its own staging of files. Raises what Executor raises, and
        ValueError for an executor together with an endpoint.
        """
        super().__init__()
        if executor is not None and (endpoint_id is not None or user_endpoint_config is not None or options):
            raise ValueError("pass either executor=... or endpoint_id=... with its options, not both")
        if executor is None and endpoint_id is None:
            raise ValueError('pass the endpoint to run on, such as MepExecutor("ENDPOINT_ID", label="campus")')
        self.endpoint_id, self.label = endpoint_id, label
        self.user_endpoint_config, self.executor = user_endpoint_config, executor
        self.storage_access, self.working_dir = storage_access, working_dir
        self._own = executor is None
        self._executor = executor or Executor(endpoint_id, user_endpoint_config=user_endpoint_config, **options)
        self._submitting = threading.Lock()

    def submit(
        self, func: Callable[..., Any], resource_specification: dict[str, Any], *args: Any, **kwargs: Any
    ) -> TaskFuture[Any]:
        """Call `func` on the endpoint; return the future. Called by Parsl."""
        wanted = dict(resource_specification)
        executor = self._executor
        with self._submitting:  # the attributes are the executor's, and Parsl submits from several threads
            usual = executor.user_endpoint_config, executor.resource_specification
            try:
                executor.user_endpoint_config = wanted.pop("user_endpoint_config", usual[0])
                executor.resource_specification = wanted or usual[1]
                future = executor.submit(func, *args, **kwargs)
            finally:
                executor.user_endpoint_config, executor.resource_specification = usual
        setattr(future, "parsl_executor_task_id", future.task_id)  # noqa: B010 - for Parsl's log
        return future

    def monitor_resources(self) -> bool:
        """Whether Parsl may watch the tasks' processes, which are on another machine."""
        return False

    def shutdown(self) -> None:
        """Cancel tasks that have not ended. Parsl calls it once it needs no further results."""
        if self._own:
            self._executor.shutdown(wait=False, cancel_futures=True)
        super().shutdown()
