"""A backend for joblib, and thus for scikit-learn's `n_jobs`.

    mep_sdk.joblib.register()
    with joblib.parallel_backend("mep", endpoint_id=...):
        joblib.Parallel()(...)

Needs joblib, here and on the endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from mep_sdk.executor import Executor
from mep_sdk.futures import TaskFuture
from mep_sdk.map_chunks import call

AT_ONCE = 64
"""How many batches of calls joblib takes for running at once where `n_jobs` does not say: it submits twice as many."""


class MepBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs joblib's batches of calls as tasks."""

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, *, executor: Executor | None = None, nesting_level: int | None = None, **options: Any) -> None:
        """`options` are those of mep_sdk.Executor, such as `endpoint_id`. An `executor` in their place stays open."""
        super().__init__(nesting_level=nesting_level)
        if executor is None and options.get("endpoint_id") is None:
            raise ValueError('pass the endpoint to run on: joblib.parallel_backend("mep", endpoint_id="ENDPOINT_ID")')
        self._options, self._given, self._executor = options, executor, executor
        self._futures: set[TaskFuture[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many batches run at once. Raises ValueError for 0."""
        if n_jobs == 0:
            raise ValueError("n_jobs is the number of batches to run at once, such as 16, or -1; not 0")
        return AT_ONCE if n_jobs is None or n_jobs < 0 else n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Be ready for one Parallel call; return how many batches run at once."""
        self.parallel = parallel
        if self._executor is None:
            self._executor = Executor(**self._options)
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> TaskFuture[Any]:
        """Run a batch of calls. Called by joblib."""
        assert self._executor is not None
        future = self._executor.submit(call, func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """Return a batch's values, or raise what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel the batches that have not ended, after one has failed."""
        if self._executor is not None:
            self._executor.cancel(list(self._futures))

    def terminate(self) -> None:
        """End after a Parallel call. A later one makes another executor."""
        if self._given is None and self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    def get_nested_backend(self) -> tuple[Any, None]:
        """What calls of joblib within a task use: the worker's one process."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def register() -> None:
    """Make the backend known to joblib as "mep"."""
    joblib.register_parallel_backend("mep", MepBackend)
