"""The pods of Parsl's KubernetesProvider: their states, their failures and their deletion.

Parsl believes that a deleted pod runs for ever, since it treats every failed query as no answer. This module relies
on the API server's answer: not found means gone, and any other failure means nothing. A pod that can't pull its
image would also wait for ever: it counts as failed. Pods that have ended are deleted, since Parsl doesn't do that.
Needs the `kubernetes` package, as the provider does; imported only where that is used. Called by blocks.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from user_endpoint.engines.htex.parsl_import import light_parsl
from user_endpoint.engines.htex.scheduler import PARSL_RAISES, TERMINAL, Scheduler

with light_parsl():
    from parsl.jobs.states import JobState, JobStatus

_log = logging.getLogger(__name__)
_NOT_FOUND: Final = 404
_PHASES: Final = {
    "Pending": JobState.PENDING,
    "Running": JobState.RUNNING,
    "Succeeded": JobState.COMPLETED,
    "Failed": JobState.FAILED,
}
"""Of the API's five; `Unknown` says that the node does not answer, and is not taken for anything."""
_HOPELESS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
"""Reasons for which a container that waits is not going to start."""
_LAST_LINES: Final = 20


class Pods(Scheduler):
    """See the module."""

    raises = (*PARSL_RAISES, ApiException, HTTPError)

    def status(self, jobs: Sequence[Any]) -> list[Any]:
        """Return Parsl's JobStatus of each pod, None where the API server does not say."""
        return [self._status_of(job) for job in jobs]

    def ended(self, job: Any) -> None:
        """A pod has ended and is no longer needed."""
        self.cancel([job], 0.0)

    def _status_of(self, job: Any) -> Any:
        api, name = self._provider.kube_client, self._provider.resources[job]["pod_name"]
        try:
            pod = api.read_namespaced_pod(name=name, namespace=self._provider.namespace)
        except self.raises as error:
            if getattr(error, "status", None) == _NOT_FOUND:
                return JobStatus(JobState.MISSING, "its pod was deleted")
            _log.warning("nothing is known of pod=%s error=%s", name, error)
            return None
        state = _PHASES.get(pod.status.phase)
        reason = _why_hopeless(pod)
        if reason and state is JobState.PENDING:
            return JobStatus(JobState.FAILED, reason)
        if state not in TERMINAL:
            return None if state is None else JobStatus(state)
        return JobStatus(
            state, "\n".join(filter(None, (pod.status.reason, pod.status.message, self._last_words(name))))
        )

    def _last_words(self, name: str) -> str:
        with contextlib.suppress(*self.raises):
            api = self._provider.kube_client
            return str(api.read_namespaced_pod_log(name, self._provider.namespace, tail_lines=_LAST_LINES))
        return ""

    def _cancel(self, jobs: list[Any]) -> bool:
        api, accepted = self._provider.kube_client, True
        for job in jobs:
            name = self._provider.resources[job]["pod_name"]
            try:
                api.delete_namespaced_pod(name=name, namespace=self._provider.namespace)
            except ApiException as error:
                accepted = accepted and error.status == _NOT_FOUND
                if error.status != _NOT_FOUND:
                    _log.warning("pod=%s could not be deleted error=%s %s", name, error.status, error.reason)
        return accepted


def _why_hopeless(pod: Any) -> str:
    """Return why a pod's container is not going to start, empty where it may."""
    for container in pod.status.container_statuses or ():
        waiting = container.state.waiting if container.state is not None else None
        if waiting is not None and waiting.reason in _HOPELESS:
            return f"{waiting.reason}: {waiting.message or 'no more is said'}"
    return ""
