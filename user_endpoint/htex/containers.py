"""The command that starts a node's worker pool inside a container.

The image needs a Python with mep-sdk[worker]; our own packages come from the user endpoint's file system, which is
given to the container to read. The person's run directory is given to it too, for keys and logs. Called by the client.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from user_endpoint.settings import GlobusComputeEngine

PYTHON = "python3"
"""The Python that is looked up inside the container."""
_PACKAGES = Path(__file__).resolve().parents[2]


def in_container(settings: GlobusComputeEngine, run_directory: str, command: str) -> str:
    """Return the shell command that runs `command` as the settings' container_* options ask."""
    options, image = settings.container_cmd_options or "", settings.container_uri or ""
    run, packages = shlex.quote(f"{run_directory}:{run_directory}"), shlex.quote(f"{_PACKAGES}:{_PACKAGES}:ro")
    match settings.container_type:
        case "docker" | "podman" | "podman-hpc":
            words = [settings.container_type, "run", options, "-v", run, "-v", packages, "-t", shlex.quote(image)]
        case "apptainer" | "singularity":
            words = [settings.container_type, "run", options, "--bind", run, "--bind", packages, shlex.quote(image)]
        case "custom":
            template = options.replace("{EXECUTOR_RUNDIR}", run_directory)
            return template.replace("{EXECUTOR_LAUNCH_CMD}", command)
        case _:
            return command
    return " ".join(word for word in [*words, command] if word)
