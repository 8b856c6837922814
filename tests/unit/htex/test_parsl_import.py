"""Parsl in small pieces: nothing that is not needed is loaded, and everything is there when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = "('parsl.dataflow.dflow', 'requests.sessions', 'asyncio', 'typeguard', 'parsl.providers.slurm.slurm')"


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "user_endpoint.engines.htex.engine",
        "user_endpoint.engines.htex.interchange",
        "user_endpoint.engines.htex.executor",
    ],
)
def test_little_is_loaded(module: str) -> None:
    assert run(f"import sys, {module}\nprint([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_the_pool_loads_no_parsl_at_all() -> None:
    script = "import sys, user_endpoint.engines.htex.worker_pool\n"
    script += "print([name for name in sys.modules if name.startswith('parsl')])"
    assert run(script) == "[]\n"


def test_the_rest_of_parsl_is_there_when_it_is_asked_for() -> None:
    script = (
        "import user_endpoint.engines.htex.engine, parsl\n"
        "from parsl import python_app, Config\n"
        "from parsl.providers import SlurmProvider, AWSProvider\n"
        "from parsl.executors import HighThroughputExecutor, MPIExecutor\n"
        "import typeguard, requests\n"
        "assert typeguard.check_type and requests.get and parsl.load and parsl.__version__\n"
        "from parsl.app.app import python_app as same\n"
        "assert same is python_app\n"
        "print(HighThroughputExecutor.__module__, hasattr(parsl, 'no_such_name'))"
    )
    assert run(script) == "parsl.executors.high_throughput.executor False\n"


def test_parsl_that_was_there_first_is_left_alone() -> None:
    script = "import parsl\nbefore = parsl.python_app\nimport user_endpoint.engines.htex.engine\n"
    script += "print(parsl.python_app is before)"
    assert run(script) == "True\n"
