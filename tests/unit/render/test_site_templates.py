"""Templates and configurations as sites have them, Globus Compute's published ones among them."""

from __future__ import annotations

import re
from pathlib import Path

from user_endpoint.settings import AddressSettings, GlobusComputeEngine, JobStatusSettings, ProcessPoolEngine

from .test_refusals import settings

POLARIS_WORKSHOP = """
engine:
    # This engine uses the HighThroughputExecutor
    type: GlobusComputeEngine

    available_accelerators: 4 # Assign one worker per GPU
    max_workers_per_node: 4

    cpu_affinity: "list:24-31,56-63:16-23,48-55:8-15,40-47:0-7,32-39"

    prefetch_capacity: 0  # Increase if you have many more tasks than workers
    max_retries_on_system_failure: 2

    strategy: simple
    job_status_kwargs:
        max_idletime: 300
        strategy_period: 60

    provider:
        type: PBSProProvider

        launcher:
            type: MpiExecLauncher
            # Ensures 1 manger per node, work on all 64 cores
            bind_cmd: --cpu-bind
            overrides: --ppn 1

        account: alcf_training
        queue: HandsOnHPC
        cpus_per_node: 64
        select_options: ngpus=4

        # e.g., "#PBS -l filesystems=home:grand:eagle\\n#PBS -k doe"
        scheduler_options: "#PBS -l filesystems=home:eagle:grand"

        # Node setup: activate necessary conda environment and such
        worker_init: "source /grand/_env/bin/activate; module load PrgEnv-nvhpc; cd $HOME"

        walltime: 00:30:00
        nodes_per_block: 1
        init_blocks: 0
        min_blocks: 0
        max_blocks: 1
"""

POLARIS = """
display_name: My Polaris Endpoint
engine:
    type: GlobusComputeEngine
    max_workers_per_node: 1
    address:
        type: address_by_interface
        ifname: bond0
    provider:
        type: PBSProProvider
        account: example_alcf_account
        queue: preemptable
        cpus_per_node: 32
        select_options: ngpus=4
        scheduler_options: "#PBS -l filesystems=home:grand:eagle"
        worker_init: "module load Anaconda; source activate compute_venv"
        walltime: 01:00:00
        nodes_per_block: 1
        init_blocks: 0
        min_blocks: 0
        max_blocks: 2
        launcher:
            type: MpiExecLauncher
            bind_cmd: --cpu-bind
            overrides: --depth=64 --ppn 1
"""

WITH_VARIABLES = """
engine:
  type: GlobusComputeEngine
  nodes_per_block: {{ NODES_PER_BLOCK }}

  provider:
    type: SlurmProvider
    partition: cpu
    account: {{ ACCOUNT_ID }}
    walltime: {{ WALLTIME|default("00:30:00") }}

    launcher:
       type: SrunLauncher
"""

AS_CONFIGURE_WRITES = """
endpoint_setup: {{ endpoint_setup|default() }}

engine:
  type: GlobusComputeEngine
  max_workers_per_node: 1
  provider:
    type: LocalProvider
    min_blocks: 0
    max_blocks: 1
    init_blocks: 1
    worker_init: {{ worker_init|default() }}

# Endpoints will be restarted when a user submits a task to an
# endpoint with a different configuration
idle_heartbeats_soft: 10
idle_heartbeats_hard: 5760
"""


def test_the_workshops_polaris() -> None:
    engine = settings(POLARIS_WORKSHOP).engine
    assert isinstance(engine, GlobusComputeEngine)
    assert engine.provider["walltime"] == "00:30:00"
    assert engine.provider["launcher"] == {"type": "MpiExecLauncher", "bind_cmd": "--cpu-bind", "overrides": "--ppn 1"}
    assert engine.job_status_kwargs == JobStatusSettings(max_idletime=300.0, strategy_period=60.0)
    assert (engine.available_accelerators, engine.strategy, engine.prefetch_capacity) == (4, "simple", 0)


def test_the_articles_polaris() -> None:
    found = settings(POLARIS)
    assert found.display_name == "My Polaris Endpoint"
    assert isinstance(found.engine, GlobusComputeEngine)
    assert found.engine.address == AddressSettings(type="address_by_interface", ifname="bond0")
    assert found.engine.provider["walltime"] == "01:00:00"


def test_the_slides_template() -> None:
    engine = settings(WITH_VARIABLES, {"NODES_PER_BLOCK": 2, "ACCOUNT_ID": "proj: 'x'"}).engine
    assert isinstance(engine, GlobusComputeEngine)
    assert engine.nodes_per_block == 2
    assert engine.provider == {
        "type": "SlurmProvider",
        "partition": "cpu",
        "account": "proj: 'x'",
        "walltime": "00:30:00",
        "launcher": {"type": "SrunLauncher"},
    }
    config = {"NODES_PER_BLOCK": 2, "ACCOUNT_ID": "a", "WALLTIME": "10:30:00"}
    engine = settings(WITH_VARIABLES, config).engine
    assert isinstance(engine, GlobusComputeEngine)
    assert engine.provider["walltime"] == "10:30:00"


def test_what_is_left_empty_is_not_given() -> None:
    found = settings(AS_CONFIGURE_WRITES)
    assert found.endpoint_setup is None
    assert isinstance(found.engine, GlobusComputeEngine)
    assert "worker_init" not in found.engine.provider
    assert (found.idle_soft_s, found.idle_hard_s) == (300.0, 172800.0)
    found = settings(AS_CONFIGURE_WRITES, {"worker_init": "module load x\nexport A='b: c'", "endpoint_setup": "true"})
    assert isinstance(found.engine, GlobusComputeEngine)
    assert found.engine.provider["worker_init"] == "module load x\nexport A='b: c'"
    assert found.endpoint_setup == "true"


def test_keys_that_mean_nothing_here_are_accepted_and_listed() -> None:
    found = settings("engine: {type: ProcessPoolEngine}\namqp_port: 443\nhigh_assurance: false\ndetach_endpoint: true")
    assert found.engine == ProcessPoolEngine()
    assert found.not_applicable == ("amqp_port", "detach_endpoint", "high_assurance")
    assert (found.idle_soft_s, found.idle_hard_s) == (None, None)


def test_the_example_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "templates.md").read_text()
    example = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    engine = settings(example, {"ACCOUNT": "a", "GPUS": 1, "DATA": "/my data"}).engine
    assert isinstance(engine, GlobusComputeEngine)
    assert engine.provider == {
        "type": "SlurmProvider",
        "partition": "gpu",
        "account": "a",
        "walltime": "00:30:00",
        "worker_init": "module load python\nexport DATA='/my data'\n",
    }
