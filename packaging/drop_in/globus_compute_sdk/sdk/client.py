"""Client."""

from __future__ import annotations

from typing import Any

import mep_sdk
from globus_compute_sdk.sdk._task_failures import task_failure
from mep_sdk import ComputeSerializer

__all__ = ("Client",)


class Client(mep_sdk.Client):
    """MEP's Client, which raises the exceptions of tasks as TaskExecutionFailed too."""

    @property
    def fx_serializer(self) -> ComputeSerializer:
        """The serializer, by the name that scripts know."""
        return self.serializer

    @fx_serializer.setter
    def fx_serializer(self, value: ComputeSerializer) -> None:
        self.serializer = value

    def get_task(self, task_id: Any) -> dict[str, Any]:
        """Return where a task is, or raise what it failed with."""
        task = super().get_task(task_id)
        if "exception" in task:
            raise task["exception"]
        return task

    def _task_failure(self, error: Exception, completion_t: str | None = None) -> Exception:
        return task_failure(error, completion_t)
