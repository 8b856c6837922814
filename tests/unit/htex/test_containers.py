"""Commands that start workers in containers, as Globus Compute's endpoint composes them, plus our packages."""

from __future__ import annotations

from typing import Any

import pytest

from user_endpoint.engines.htex.containers import in_container
from user_endpoint.settings import SettingsInvalid, UepSettings, settings_from

DOCKER = "run --gpus all -v /run/dir:/run/dir -t example/image:1 python3 pool --port=1"
APPTAINER = "run --nv --bind /run/dir:/run/dir example.sif python3 pool --port=1"


def settings(**engine: Any) -> UepSettings:
    return settings_from({"engine": {"type": "GlobusComputeEngine", **engine}})


def command(**engine: Any) -> str:
    chosen: Any = settings(**engine).engine
    return in_container(chosen, "/run/dir", "python3 pool --port=1")


@pytest.mark.parametrize("kind", ["docker", "podman", "podman-hpc"])
def test_docker_and_its_kin(kind: str) -> None:
    found = command(container_type=kind, container_uri="example/image:1", container_cmd_options="--gpus all")
    assert found == f"{kind} {DOCKER}"


@pytest.mark.parametrize("kind", ["apptainer", "singularity"])
def test_apptainer_and_singularity(kind: str) -> None:
    found = command(container_type=kind, container_uri="example.sif", container_cmd_options="--nv")
    assert found == f"{kind} {APPTAINER}"


def test_a_command_of_the_sites_own() -> None:
    template = "shifter --volume={EXECUTOR_RUNDIR} --image=x {EXECUTOR_LAUNCH_CMD}"
    found = command(container_type="custom", container_cmd_options=template)
    assert found == "shifter --volume=/run/dir --image=x python3 pool --port=1"


def test_no_container() -> None:
    assert command() == "python3 pool --port=1"


def test_an_image_is_one_word() -> None:
    assert "'a b; rm -rf x'" in command(container_type="docker", container_uri="a b; rm -rf x")


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"container_type": "docker"}, "container_uri"),
        ({"container_uri": "x"}, "container_type"),
        ({"container_type": "custom"}, "EXECUTOR_LAUNCH_CMD"),
        ({"container_type": "jail", "container_uri": "x"}, "container_type"),
        ({"container_type": "docker", "container_uri": "x", "launch_cmd": "y"}, "launch_cmd"),
    ],
)
def test_what_does_not_fit_together_is_refused(engine: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsInvalid, match=reason):
        settings(**engine)
