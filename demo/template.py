"""The files of the demo's administrator: the template, its schema and the identity mapping."""

from __future__ import annotations

from sitekit.endpoint import MAPPING, SCHEMA, TEMPLATE, Endpoint, expression_mapping

TEMPLATE_TEXT = """\
display_name: demo of project {{ project }}
engine:
{% if engine | default("ProcessPoolEngine") == "GlobusComputeEngine" %}
  type: GlobusComputeEngine
  max_workers_per_node: {{ workers | default(2) }}
  provider:
    type: LocalProvider
    init_blocks: 1
    max_blocks: 1
{% else %}
  type: ProcessPoolEngine
  max_workers: {{ workers | default(2) }}
{% endif %}
endpoint_setup: |
  printf %s {{ project | shell_escape }} > "WORKPLACE/project"
"""

SCHEMA_VALUE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "project": {"type": "string", "pattern": "^[a-z]{1,32}$"},
        "workers": {"type": "integer", "minimum": 1, "maximum": 4},
        "engine": {"enum": ["ProcessPoolEngine", "GlobusComputeEngine"]},
    },
    "required": ["project"],
    "additionalProperties": False,
}


def configure(endpoint: Endpoint, workplace: str, *, mapped_to: str = "") -> None:
    """Replace the files that `mep configure` wrote with the demo's. `workplace`: where tasks may write;
    `mapped_to`: the accounts of Alice and Bob, with {0} for the name, where the endpoint is for many people."""
    endpoint.write(TEMPLATE, TEMPLATE_TEXT.replace("WORKPLACE", workplace))
    endpoint.write(SCHEMA, SCHEMA_VALUE)
    if mapped_to:
        endpoint.write(MAPPING, expression_mapping(("(alice|bob)@example\\.edu", mapped_to)))
    endpoint.register_again()
