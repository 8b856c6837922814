"""The command that starts a node's worker pool inside a container.

The person's run directory is given to it, for keys, logs and the workers' files (see runner_files). The image needs
a Python, with mep-sdk[worker] where that is of another version than the user endpoint's. Called by the client.
"""

from __future__ import annotations

import shlex

from user_endpoint.settings import GlobusComputeSettings

PYTHON = "python3"
"""The Python that is looked up inside the container."""


def in_container(settings: GlobusComputeSettings, run_directory: str, command: str) -> str:
    """Return the shell command that runs `command` as the settings' container_* options ask."""
    options, image = settings.container_cmd_options or "", settings.container_uri or ""
    run = shlex.quote(f"{run_directory}:{run_directory}")
    match settings.container_type:
        case "docker" | "podman" | "podman-hpc":
            words = [settings.container_type, "run", options, "-v", run, "-t", shlex.quote(image)]
        case "apptainer" | "singularity":
            words = [settings.container_type, "run", options, "--bind", run, shlex.quote(image)]
        case "custom":
            template = options.replace("{EXECUTOR_RUNDIR}", shlex.quote(run_directory))
            return template.replace("{EXECUTOR_LAUNCH_CMD}", command)
        case _:
            return command
    return " ".join(word for word in [*words, command] if word)
