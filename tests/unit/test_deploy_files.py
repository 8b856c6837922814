"""The files of packaging/deploy by the schemas of their formats, and by what they say of the same relay."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "packaging" / "deploy"
TOOLS = Path(f"{sys.prefix}-tests", "bin")
COMPOSE = [str(TOOLS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
KUBERNETES = [str(TOOLS / "kubernetes-validate"), "--strict", "--quiet"]
CASES = [
    pytest.param(COMPOSE, "compose.yaml", ("restart:", "restrat:"), id="Compose"),
    pytest.param(COMPOSE, "compose.yaml", ("cap_drop: [ALL]", "cap_drop: ALL"), id="Compose, a type"),
    pytest.param(KUBERNETES, "kubernetes.yaml", ("replicas: 1", "replicas: one"), id="Kubernetes"),
    pytest.param(KUBERNETES, "kubernetes.yaml", ("serviceName:", "servicename:"), id="Kubernetes, a name"),
]


@pytest.mark.parametrize(("check", "name", "fault"), CASES)
def test_a_file_has_the_schema_of_its_format(
    check: list[str], name: str, fault: tuple[str, str], tmp_path: Path
) -> None:
    """The validators bring the schemas: no network is needed. A file with a fault is refused."""
    text = (DEPLOY / name).read_text()
    done = subprocess.run([*check, str(DEPLOY / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert text.replace(*fault) != text
    (tmp_path / name).write_text(text.replace(*fault))
    done = subprocess.run([*check, str(tmp_path / name)], capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout + done.stderr


def instruction(word: str) -> str:
    """Return the words of the Containerfile's last instruction of this kind."""
    return re.findall(rf"^{word} (.*)$", (DEPLOY / "Containerfile").read_text(), re.M)[-1]


def relay_set() -> dict[str, Any]:
    """Return the pods' specification in the manifest."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    (found,) = [each["spec"]["template"]["spec"] for each in documents if each["kind"] == "StatefulSet"]
    return found  # type: ignore[no-any-return]


def test_manifest_and_image_agree() -> None:
    pod = relay_set()
    (container,) = pod["containers"]
    number = int(instruction("USER").partition(":")[0])
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (number, number)
    assert str(number) in pod["initContainers"][0]["command"]
    assert [str(port["containerPort"]) for port in container["ports"]] == instruction("EXPOSE").split()
    assert instruction("VOLUME") in {each["mountPath"] for each in container["volumeMounts"]}
    assert container["image"] == pod["initContainers"][0]["image"]


def test_compose_file_and_image_agree() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    relay = document["services"]["relay"]
    assert [each.rpartition(":")[2] for each in relay["ports"]] == instruction("EXPOSE").split()
    assert relay["volumes"] == [f"state:{instruction('VOLUME')}"]
    assert set(document["services"]) == {"relay", "database"}, "nothing that the relay does not use"
    settings = document["configs"]["relay"]["content"]
    assert re.search(r'^database = "postgresql://mep@database/mep"$', settings, re.M)
    (secret,) = relay["secrets"]
    assert re.search(rf'^database_password = "/run/secrets/{secret}"$', settings, re.M)
    assert secret in document["secrets"]
    assert document["services"]["database"]["environment"]["POSTGRES_PASSWORD_FILE"] == f"/run/secrets/{secret}"
