"""An endpoint directory with the files and keys that Globus Compute 4.19's `configure --multi-user true` leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ENDPOINT_ID = "5f0f3c1e-6d0b-4c57-9a43-0b2a8a5d7c11"
TEMPLATE = """\
{#- The site's own. Texts come with quotes. -#}
{%- set _rt = _GC.user_runtime %}
{%- set sdk = (_rt.globus_compute_sdk_version[1:-1]) if _rt.globus_compute_sdk_version is defined else none %}
{%- set init %}
  {%- if sdk %}
# for SDK {{ sdk }}
  {%- endif %}
export ACCOUNT={{ ACCOUNT | default('"none"') }}
export QUEUE={{ QUEUE[1:-1] if QUEUE is defined else "standard" }}
{%- endset %}
idle_heartbeats_soft: 10
endpoint_setup: {{ endpoint_setup|default() }}
engine:
  type: ProcessPoolEngine
  max_workers: {{ WORKERS | default(1) }}
{%- if QUEUE is defined and QUEUE == '"debug"' %}
  worker_init: echo debugging
{%- else %}
  worker_init: |
    {{ init | default("") | indent(4) }}
{%- endif %}
"""
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "endpoint_setup": {"type": "string"},
        "ACCOUNT": {"type": "string"},
        "QUEUE": {"type": "string"},
        "WORKERS": {"type": "integer", "minimum": 1, "maximum": 8},
    },
    "additionalProperties": True,
}
MAPPING = [
    {
        "comment": "people of the site",
        "DATA_TYPE": "expression_identity_mapping#1.0.0",
        "mappings": [{"source": "{username}", "match": "(.*)@example\\.edu", "output": "{0}"}],
    }
]


def globus_directory(directory: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    """Write such a directory, and return it. `config` adds keys (None removes one), `files` other files by stem."""
    directory.mkdir(mode=0o700)
    mapping = directory / "example_identity_mapping_config.json"
    keys = {
        "display_name": "The cluster", "email": "help@example.edu", "identity_mapping_config_path": str(mapping),
        "public": True,
    } | (config or {})  # fmt: skip
    keys = {key: value for key, value in keys.items() if value is not None}
    texts = {
        "config.yaml": yaml.safe_dump(keys),
        mapping.name: json.dumps(MAPPING),
        "user_config_template.yaml.j2": TEMPLATE,
        "user_config_schema.json": json.dumps(SCHEMA),
        "user_environment.yaml": "# none yet\n",
        "endpoint.json": json.dumps({"endpoint_id": ENDPOINT_ID}),
    } | {name.replace("__", "."): text for name, text in files.items()}
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o644 if name.endswith(".j2") else 0o600)
    return directory
