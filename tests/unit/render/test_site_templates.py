"""Templates and configurations as sites have them, Globus Compute's published ones among them."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from mep_wire.errors import EndpointMisconfigured
from user_endpoint.engines.htex.provider import Plan
from user_endpoint.settings import (
    AddressSettings,
    GlobusComputeSettings,
    JobStatusSettings,
    ProcessPoolSettings,
    located,
)

from .test_refusals import refused, settings

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
    assert isinstance(engine, GlobusComputeSettings)
    assert engine.provider["walltime"] == "00:30:00"
    assert engine.provider["launcher"] == {"type": "MpiExecLauncher", "bind_cmd": "--cpu-bind", "overrides": "--ppn 1"}
    assert engine.job_status_kwargs == JobStatusSettings(max_idletime=300.0, strategy_period=60.0)
    assert (engine.available_accelerators, engine.strategy, engine.prefetch_capacity) == (4, "simple", 0)


def test_the_articles_polaris() -> None:
    found = settings(POLARIS)
    assert found.display_name == "My Polaris Endpoint"
    assert isinstance(found.engine, GlobusComputeSettings)
    assert found.engine.address == AddressSettings(type="address_by_interface", ifname="bond0")
    assert found.engine.provider["walltime"] == "01:00:00"


def test_the_slides_template() -> None:
    engine = settings(WITH_VARIABLES, {"NODES_PER_BLOCK": 2, "ACCOUNT_ID": "proj: 'x'"}).engine
    assert isinstance(engine, GlobusComputeSettings)
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
    assert isinstance(engine, GlobusComputeSettings)
    assert engine.provider["walltime"] == "10:30:00"


def test_what_is_left_empty_is_not_given() -> None:
    found = settings(AS_CONFIGURE_WRITES)
    assert found.endpoint_setup is None
    assert isinstance(found.engine, GlobusComputeSettings)
    assert "worker_init" not in found.engine.provider
    assert (found.idle_soft_s, found.idle_hard_s) == (300.0, 172800.0)
    found = settings(AS_CONFIGURE_WRITES, {"worker_init": "module load x\nexport A='b: c'", "endpoint_setup": "true"})
    assert isinstance(found.engine, GlobusComputeSettings)
    assert found.engine.provider["worker_init"] == "module load x\nexport A='b: c'"
    assert found.endpoint_setup == "true"


def test_keys_that_mean_nothing_here_are_accepted_and_listed() -> None:
    found = settings("engine: {type: ProcessPoolEngine}\namqp_port: 443\nhigh_assurance: false\ndetach_endpoint: true")
    assert found.engine == ProcessPoolSettings()
    assert found.not_applicable == ("amqp_port", "detach_endpoint", "high_assurance")
    assert (found.idle_soft_s, found.idle_hard_s) == (None, None)


def test_the_example_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "templates.md").read_text()
    example = re.findall(r"^```jinja\n(.*?)^```", page, re.DOTALL | re.MULTILINE)[0]
    engine = settings(example, {"ACCOUNT": "a", "GPUS": 1, "DATA": "/my data"}).engine
    assert isinstance(engine, GlobusComputeSettings)
    assert engine.provider == {
        "type": "SlurmProvider",
        "partition": "gpu",
        "account": "a",
        "walltime": "00:30:00",
        "worker_init": "module load python\nexport DATA='/my data'\n",
    }


# --- shapes of configurations that sites and Globus Compute's documentation publish, in our own words -----------

SLURM_SITES = {
    # name: (interface, keys of the engine, keys of the provider)
    "Anvil": ("ib0", "max_workers_per_node: 2", "partition: debug\ninit_blocks: 1\nmin_blocks: 0\nwalltime: 00:05:00"),
    "Bebop": ("ib0", "worker_debug: False", "partition: {{ PARTITION }}\nnodes_per_block: 1\nwalltime: 00:30:00"),
    "Bridges-2": ("ens3f0", "worker_debug: False", "partition: RM-small\nnodes_per_block: 2\nwalltime: 00:30:00"),
    "Delta": ("eth6.560", "max_workers_per_node: 2", "partition: cpu\ninit_blocks: 1\nwalltime: 00:30:00"),
    "Expanse": ("ib0", "max_workers_per_node: 2", "partition: compute\nwalltime: 00:05:00"),
    "FASTER": (
        "eno8303",
        "strategy:\n  type: SimpleStrategy\n  max_idletime: 90",
        "partition: cpu\nmem_per_node: 128\ncmd_timeout: 120\nwalltime: 00:10:00",
    ),
    "Frontera": ("ib0", "max_workers_per_node: 2", "partition: {{ PARTITION }}\ncmd_timeout: 60\nwalltime: 00:30:00"),
    "Midway": ("bond0", "max_workers_per_node: 2", "partition: caslake\nnodes_per_block: 2\nwalltime: 00:30:00"),
    "Perlmutter": (
        "hsn0",
        "worker_debug: False",
        "partition: debug\ncmd_timeout: 120\nnodes_per_block: 2\nwalltime: 00:10:00",
    ),
    "Stampede3": ("ibp10s0", "max_workers_per_node: 2", "partition: skx-dev\ncmd_timeout: 60\nwalltime: 00:30:00"),
}
VARIABLES = {
    "ACCOUNT": "abc-123",
    "PARTITION": "normal",
    "OPTIONS": "#SBATCH --constraint=gpu\n#SBATCH --gpus-per-node=4",
    "COMMAND": "module load anaconda3; source activate env",
}


def indented(text: str, depth: int) -> str:
    return "\n".join(" " * depth + line for line in text.splitlines())


@pytest.mark.parametrize("site", sorted(SLURM_SITES))
def test_slurm_sites(site: str) -> None:
    interface, engine_keys, provider_keys = SLURM_SITES[site]
    found = settings(
        f"""
amqp_port: 443
display_name: {site}
engine:
  type: GlobusComputeEngine
{indented(engine_keys, 2)}
  address:
    type: address_by_interface
    ifname: {interface}
  provider:
    type: SlurmProvider
    account: {{{{ ACCOUNT }}}}
    launcher:
      type: SrunLauncher
      overrides: -c 128
    # lines that come before the script's own
    scheduler_options: {{{{ OPTIONS }}}}
    worker_init: {{{{ COMMAND }}}}
    max_blocks: 1
{indented(provider_keys, 4)}
""",
        VARIABLES,
    )
    assert found.not_applicable == ("amqp_port",)
    assert isinstance(found.engine, GlobusComputeSettings)
    assert found.engine.address == AddressSettings(type="address_by_interface", ifname=interface)
    made = plan(found.engine)
    assert made.block_walltime_s in (300.0, 600.0, 1800.0)


def plan(engine: GlobusComputeSettings) -> Plan:
    """Check the rest against Parsl, without the interface, which is the site's."""
    return Plan(msgspec.structs.replace(engine, address="127.0.0.1"))


OTHER_SITES = {
    "Midway, in Apptainer": """
engine:
  type: GlobusComputeEngine
  label: Midway@RCC.UChicago
  max_workers_per_node: 10
  container_type: apptainer
  container_cmd_options: -H /home/$USER
  container_uri: {{ IMAGE }}
  provider:
    type: SlurmProvider
    launcher:
      type: SrunLauncher
    nodes_per_block: 2
    walltime: 00:30:00
""",
    "MPI on Expanse": """
engine:
  type: GlobusMPIEngine
  mpi_launcher: srun
  provider:
    type: SlurmProvider
    partition: compute
    launcher:
      type: SimpleLauncher
    nodes_per_block: 4
    walltime: 00:05:00
""",
    "GPUs by a launcher's override": """
engine:
  type: GlobusComputeEngine
  provider:
    type: SlurmProvider
    partition: general
    launcher:
      type: SrunLauncher
      overrides: >
        hostname; srun --ntasks={{ WORKERS }}
        --gpus-per-task=rtx2080ti:{{ GPUS }} \\
    nodes_per_block: 1
    walltime: 00:30:00
""",
    "LSF": """
engine:
  type: GlobusComputeEngine
  provider:
    type: LSFProvider
    launcher:
      type: SingleNodeLauncher
    queue: standard
    cores_per_node: 12
    cmd_timeout: 60
    walltime: 00:30:00
    scheduler_options: "# BSUB -R span[hosts=1]"
    worker_init: |
      module load conda
      conda activate /path/to/env
""",
    "PBS with more workers than GPUs": """
engine:
  type: GlobusComputeEngine
  available_accelerators: ["0.0", "0.1", "1.0", "1.1"]
  cpu_affinity: block-reverse
  provider:
    type: PBSProProvider
    queue: debug-scaling
    cpus_per_node: 32
    select_options: ngpus=4
    launcher:
      type: MpiExecLauncher
      bind_cmd: --cpu-bind
      overrides: --depth=64 --ppn 1
    walltime: 01:00:00
""",
    "workers pinned, without a type": """
engine:
  max_workers_per_node: 4
  available_accelerators: ["opencl:gpu:1", "opencl:gpu:2"]
  provider:
    type: LocalProvider
    init_blocks: 1
""",
    "moved files and retries": """
paths:
  endpoint_dir: /scratch/x
engine:
  type: GlobusComputeEngine
  max_retries_on_system_failure: 2
  job_status_kwargs:
    max_idletime: 60.0
    strategy_period: 120.0
  allowed_serializers: [globus_compute_sdk.serialize.CombinedCode, globus_compute_sdk.serialize.JSONData]
  provider:
    type: LocalProvider
    max_blocks: 4
""",
}


@pytest.mark.parametrize("site", sorted(OTHER_SITES))
def test_other_sites(site: str) -> None:
    found = settings(OTHER_SITES[site], {"IMAGE": "/images/a.sif", "WORKERS": 2, "GPUS": 1})
    assert isinstance(found.engine, GlobusComputeSettings)
    plan(found.engine)


@pytest.mark.parametrize("provider", ["KubernetesProvider", "CondorProvider"])
def test_without_encryption_for_the_owner_alone(provider: str) -> None:
    source = f"""
heartbeat_period: 15
heartbeat_threshold: 200
engine:
  type: GlobusComputeEngine
  label: kube
  encrypted: false
  worker_logdir_root: /tmp/logs
  working_dir: /tmp/tasks
  address:
    type: address_by_route
  provider:
    type: {provider}
    init_blocks: 0
    max_blocks: 2
    worker_init: {{{{ COMMAND }}}}
"""
    if provider == "KubernetesProvider":
        source += (
            '    namespace: default\n    image: python:3.12\n    max_mem: 4096Mi\n    secret: ""\n    init_cpu: 1\n'
        )
        source += "    persistent_volumes: [[claim, /data]]\n"
    found = settings(source, VARIABLES, multi_user=False)
    assert isinstance(found.engine, GlobusComputeSettings)
    assert plan(found.engine).block_walltime_s is None
    error = refused(EndpointMisconfigured, source, VARIABLES)
    assert error.detail == (
        "t.j2: line 7 of the rendered text: engine.encrypted: must not be false on a multi-user endpoint (t.j2:7)"
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("engine:\n  type: ProcessPoolEngine\n\n  max_worker: 2\n", "line 4 of the rendered text: engine.max_worker: "),
        ("debug: 3\nengine:\n  type: ProcessPoolEngine\n", "line 1 of the rendered text: debug: Expected `bool`"),
        ("engine:\n  job_status_kwargs:\n    idle: 3\n", "line 3 of the rendered text: engine.job_status_kwargs.idle"),
        (
            "engine:\n  provider: {walltime: 3}\n",
            "line 2 of the rendered text: engine.provider.walltime: is the",
        ),
        ("display_name: x\n", "t.j2: engine: missing"),
    ],
)
def test_a_refusal_names_the_line_the_key_and_what_is_accepted(source: str, says: str) -> None:
    assert says in refused(EndpointMisconfigured, source).detail


def test_so_does_one_that_only_parsl_can_tell() -> None:
    found = settings("engine:\n  type: GlobusComputeEngine\n  provider:\n    type: SlurmProvider\n    walltme: x\n")
    assert isinstance(found.engine, GlobusComputeSettings)
    with pytest.raises(EndpointMisconfigured) as caught:
        Plan(found.engine)
    told = located(caught.value.detail, found.lines)
    assert told.startswith("line 5 of the rendered text: engine.provider.walltme: unknown key; did you mean walltime?")
    assert located("engine.provider.image: missing", found.lines).startswith("line 3 of the rendered text: ")
