"""The functions that the demo's people run: each is shipped to the endpoint as it stands here."""

from __future__ import annotations

from typing import Any


def who_am_i(project_file: str) -> dict[str, Any]:
    """Report the account that a task runs as, and the value its person chose in user_endpoint_config."""
    import os
    import pwd
    from pathlib import Path

    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": sorted({os.getgid(), *os.getgroups()}),
        "home": os.environ["HOME"],
        "project": Path(os.path.expandvars(project_file)).read_text(),
    }


def add_func(a: int, b: int) -> int:
    """Add two numbers: the tutorial's 0_remote_adder.py."""
    return a + b


def hello_affinity(run_directory: str) -> tuple[int, str, str]:
    """Run an executable, keep its output in files and return it: the tutorial's 1_register_function.py."""
    import os
    import subprocess
    from pathlib import Path

    Path(os.path.expandvars(run_directory)).mkdir(parents=True, exist_ok=True)
    os.chdir(os.path.expandvars(run_directory))
    command = "taskset -pc " + str(os.getpid())
    res = subprocess.run(command.split(" "), capture_output=True, check=False)
    with open("hello.stdout", "w") as f:
        f.write(res.stdout.decode("utf-8"))
    with open("hello.stderr", "w") as f:
        f.write(res.stderr.decode("utf-8"))
    if res.returncode != 0:
        raise RuntimeError(f"Application failed with non-zero return code: {res.returncode} {res.stderr!r}")
    return res.returncode, res.stdout.decode("utf-8"), res.stderr.decode("utf-8")


def pi(num_points: int) -> float:
    """Estimate pi from random points in a square."""
    from random import random

    inside = 0
    for _ in range(num_points):
        x, y = random(), random()
        if x**2 + y**2 < 1:
            inside += 1
    return inside * 4 / num_points


def nothing() -> None:
    """Do nothing, so that only MEP's own time is measured."""
