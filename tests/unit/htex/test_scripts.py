"""Our requests to PBS and LSF, with our settings, and how their recorded answers are read: no server runs here."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import parsl.launchers
import pytest
from parsl.jobs.states import JobState

from user_endpoint.engines.htex.provider import Plan
from user_endpoint.engines.htex.script_paths import launcher_with_quoted_paths
from user_endpoint.settings import GlobusComputeSettings as Settings

QSTAT = """{
    "timestamp":1700000000,
    "pbs_version":"2022.1.1",
    "pbs_server":"polaris-pbs-01",
    "Jobs":{
        "1234.polaris-pbs-01":{"Job_Name":"parsl","Job_Owner":"a@login","job_state":"%s","queue":"debug"}
    }
}"""


class Commands:
    """Commands on PATH that give recorded answers and log each request."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def answers(self, name: str, text: str) -> None:
        """Let the command `name` say this."""
        (self.directory / f"{name}.said").write_text(text)
        script = self.directory / name
        script.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.directory}/asked\ncat {self.directory}/{name}.said\n')
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """Every command line so far."""
        return (self.directory / "asked").read_text().splitlines()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    made = Commands(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.directory}:/usr/bin:/bin")
    return made


def made_provider(tmp_path: Path, **options: Any) -> Any:
    provider = Plan(Settings(provider=options)).make()
    provider.script_dir = str(tmp_path)
    return provider


def script(tmp_path: Path) -> str:
    (text,) = [path.read_text() for path in tmp_path.glob("block.*") if path.suffix not in (".stdout", ".stderr")]
    return text


def test_pbs(tmp_path: Path, commands: Commands) -> None:
    commands.answers("qsub", "1234.polaris-pbs-01\n")
    provider = made_provider(
        tmp_path,
        type="PBSProProvider",
        account="catalyst",
        queue="debug",
        cpus_per_node=32,
        walltime="01:00:00",
        select_options="ngpus=4",
        scheduler_options="#PBS -l filesystems=home:grand",
        worker_init="module load conda",
    )
    job = provider.submit("run-workers", 1, "block")
    text = script(tmp_path)
    for line in (
        "#PBS -l walltime=01:00:00",
        "select=1:ncpus=32:ngpus=4",
        "#PBS -l filesystems=home:grand",
        "#PBS -r n",
    ):
        assert line in text
    for line in ("module load conda", "run-workers"):
        assert line in text
    assert "-A catalyst" in commands.asked[0] + text
    for letter, state in (("Q", JobState.PENDING), ("R", JobState.RUNNING), ("F", JobState.COMPLETED)):
        commands.answers("qstat", QSTAT % letter)
        assert provider.status([job])[0].state == state


def test_lsf(tmp_path: Path, commands: Commands) -> None:
    commands.answers("bsub", "Job <77> is submitted to queue <batch>.\n")
    provider = made_provider(
        tmp_path, type="LSFProvider", queue="batch", project="mat123", nodes_per_block=2, walltime="00:30:00"
    )
    job = provider.submit("run-workers", 1, "block")
    assert job == "77"
    text = script(tmp_path)
    for line in ("#BSUB -W 30", "#BSUB -nnodes 2", "#BSUB -P mat123", "run-workers"):
        assert line in text
    for word, state in (("PEND", JobState.PENDING), ("RUN", JobState.RUNNING), ("EXIT", JobState.FAILED)):
        commands.answers("bjobs", f"77 {word}\n")
        assert provider.status([job])[0].state == state
    commands.answers("bkill", "Job <77> is being terminated\n")
    provider.cancel([job])
    assert commands.asked[-1] == "bkill 77"


@pytest.mark.parametrize("word", ["a b", "it's", "x$HOME", "y`id`", "back\\slash", 'a"b', "plain"])
@pytest.mark.parametrize("name", ["SimpleLauncher", "SingleNodeLauncher", "MpiExecLauncher", "SrunLauncher"])
def test_a_word_of_the_workers_command_comes_through_each_launcher(tmp_path: Path, name: str, word: str) -> None:
    """The launchers' programs are stand-ins that run what they are given."""
    scripts = tmp_path / f"scripts {word}"
    scripts.mkdir()
    commands = tmp_path / "bin"
    commands.mkdir()
    for program in ("mpiexec", "srun"):
        (commands / program).write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
        (commands / program).chmod(0o755)
    made = launcher_with_quoted_paths(getattr(parsl.launchers, name))()
    command = f"printf %s {shlex.quote(word)} >{shlex.quote(str(tmp_path / 'said'))}"
    text = made(command, 1, 1, str(scripts))
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "JOBNAME": "job", "SLURM_JOB_NAME": "job", "HOME": "/root"}
    subprocess.run(["/bin/bash", "-c", text], env=environment, cwd=tmp_path, check=False, capture_output=True)
    assert (tmp_path / "said").read_text() == word
