"""GlobusComputeEngine with KubernetesProvider and the real Kubernetes client, against a stand-in for the API server.

The stand-in runs the pods' commands on this host. The tests therefore show our requests to the API and our handling of
its answers; they don't test Kubernetes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.config import kube_config
from parsl.jobs.states import JobState

from tests.support.kubernetes_api import Api
from user_endpoint.engines.htex.blocks import scheduler_of
from user_endpoint.engines.htex.job_record import JobRecord
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.settings import GlobusComputeSettings as Settings

from .test_htex import Bench, echo, note

OPTIONS = {
    "type": "KubernetesProvider",
    "image": "registry.example.edu/mep:1",
    "namespace": "science",
    "max_cpu": 4,
    "max_mem": "2Gi",
    "user_id": "1001",
    "group_id": "1001",
    "run_as_non_root": True,
    "secret": "pull",
    "persistent_volumes": [["home", "/home"]],
    "service_account_name": "worker",
    "annotations": {"site": "x"},
    "init_blocks": 0,
    "max_blocks": 1,
}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with Api(tmp_path) as made:
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(made.kubeconfig()))
        yield made


@pytest.fixture
def make(tmp_path: Path, api: Api) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def build(name: str = "uep", **provider: Any) -> Bench:
        options = {**OPTIONS, **provider}
        made.append(Bench(tmp_path / name, provider=options, address="127.0.0.1", max_workers_per_node=1))
        return made[-1]

    yield build
    for bench in made:
        bench.engine.stop(2.0)
    assert not api.pods


def test_tasks_run_in_a_pod_that_is_as_the_template_says_and_ends_with_the_user_endpoint(
    make: Callable[..., Bench], api: Api
) -> None:
    bench = make(worker_init="export MARK=1")
    assert [bench.value(bench.submit(echo, number)) for number in range(3)] == [0, 1, 2]
    ((name, pod),) = api.pods.items()
    assert name.startswith("parsl.globuscomputeengine.block-0.")
    assert pod["metadata"]["annotations"] == {"site": "x"}
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert (spec["serviceAccountName"], spec["imagePullSecrets"]) == ("worker", [{"name": "pull"}])
    assert spec["volumes"] == [{"name": "home", "persistentVolumeClaim": {"claimName": "home"}}]
    assert container["image"] == "registry.example.edu/mep:1"
    assert container["volumeMounts"] == [{"name": "home", "mountPath": "/home"}]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "2Gi"}
    assert container["securityContext"] == {"runAsUser": 1001, "runAsGroup": 1001, "runAsNonRoot": True}
    assert container["command"] == ["/bin/bash"]
    assert container["args"][0] == "-c"
    assert container["args"][1].index("export MARK=1") < container["args"][1].index("worker_pool_main.py")
    bench.engine.stop(2.0)
    bench.engine.stop = lambda grace_s: None  # type: ignore[method-assign]
    assert f"DELETE /api/v1/namespaces/science/pods/{name}" in api.asked


def test_a_pod_that_is_deleted_is_known_to_be_gone(make: Callable[..., Bench], api: Api, tmp_path: Path) -> None:
    bench = make()
    running = bench.submit(note, str(tmp_path / "ran"), 60.0)
    bench.until(lambda: running in bench.started)
    waiting = bench.submit(echo, 1)
    (first,) = api.pods
    api.end(first)
    (item,) = bench.wait(running, timeout_s=40)
    assert item.code == "WORKER_LOST"
    assert bench.value(waiting, timeout_s=40) == 1
    assert first not in api.pods


def test_pods_that_fail_at_once_say_why_and_are_deleted(make: Callable[..., Bench], api: Api) -> None:
    bench = make(worker_init="echo no such module: quux; exit 3")
    (item,) = bench.wait(bench.submit(echo, 1), timeout_s=40)
    assert item.code == "ENGINE_FAILED"
    assert "no such module: quux" in item.text
    assert len([line for line in api.asked if line.startswith("POST")]) == 3


class Pods:
    """The scheduler alone, with one pod that does not run."""

    def __init__(self, api: Api, directory: Path) -> None:
        self.directory = directory
        self.provider = Plan(Settings(provider=OPTIONS)).make()
        self.record = JobRecord(directory / "jobs.json", "KubernetesProvider")
        self.scheduler = scheduler_of("KubernetesProvider", self.provider, self.record)
        api.runs = False
        self.job = self.provider.submit("true", 1, "block")
        self.scheduler.submitted(self.job)
        (self.name,) = api.pods

    def status(self) -> Any:
        return self.scheduler.status([self.job])[0]

    def recorded(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "jobs.json").read_text())["jobs"]
        return found


@pytest.fixture
def pods(api: Api, tmp_path: Path) -> Pods:
    return Pods(api, tmp_path)


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        ("Pending", JobState.PENDING),
        ("Running", JobState.RUNNING),
        ("Succeeded", JobState.COMPLETED),
        ("Failed", JobState.FAILED),
        ("Unknown", None),
    ],
)
def test_phases(api: Api, pods: Pods, phase: str, state: Any) -> None:
    api.pods[pods.name]["status"] = {"phase": phase, "reason": "Evicted", "message": "The node was low on memory."}
    found = pods.status()
    assert (found.state if found is not None else None) == state
    if state is JobState.FAILED:
        assert "Evicted\nThe node was low on memory." in found.message


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_server_that_refuses_to_answer_says_nothing(api: Api, pods: Pods, status: int) -> None:
    api.refuse = status
    assert pods.status() is None
    pods.scheduler.cancel([pods.job], 0.0)
    assert pods.recorded() == {pods.job: {"pod_name": pods.name}}
    api.refuse = 0
    pods.scheduler.try_again(100.0)
    assert pods.recorded() == {}
    assert api.pods == {}


def test_a_server_that_is_not_there_says_nothing(api: Api, pods: Pods) -> None:
    nowhere = client.ApiClient(client.Configuration(host="http://127.0.0.1:9"))
    pods.provider.kube_client = client.CoreV1Api(nowhere)
    assert pods.status() is None
    pods.scheduler.cancel([pods.job], 0.0)
    assert pods.recorded() == {pods.job: {"pod_name": pods.name}}


def test_a_pod_whose_image_cannot_be_had_has_failed(api: Api, pods: Pods) -> None:
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "registry.example.edu/mep:1"'}
    container = {"name": pods.job, "ready": False, "restartCount": 0, "image": "x", "imageID": ""}
    api.pods[pods.name]["status"] = {
        "phase": "Pending",
        "containerStatuses": [{**container, "state": {"waiting": waiting}}],
    }
    found = pods.status()
    assert found.state is JobState.FAILED
    assert "ImagePullBackOff: Back-off pulling image" in found.message
    waiting["reason"] = "ContainerCreating"
    assert pods.status().state is JobState.PENDING


def test_the_next_process_deletes_the_pods_of_one_that_was_killed(api: Api, pods: Pods) -> None:
    provider = Plan(Settings(provider=OPTIONS)).make()
    scheduler_of("KubernetesProvider", provider, pods.record).cancel_left_over(0.0)
    assert api.pods == {}
    assert pods.recorded() == {}
