"""What `mep check` says of a template that Jinja cannot read, and that it runs nothing of one that it can."""

from __future__ import annotations

from pathlib import Path

import pytest

from mep.boundary.errors import ConfigRefused
from mep.config.example import example_files
from mep.config.template_syntax import check_syntax

TEMPLATE = Path("/etc/mep/site/user_config_template.yaml.j2")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("engine:\n  type: {% if X\n", 2),
        ("engine:\n  {% if X %}\n  type: ThreadPoolEngine\n", 2),
        ("engine: {{ X | no_such_filter }}\n", 1),
    ],
)
def test_a_mistake_is_named_with_file_and_line(text: str, line: int) -> None:
    with pytest.raises(ConfigRefused) as caught:
        check_syntax(TEMPLATE, text)
    assert caught.value.where.startswith(f"{TEMPLATE}:")
    assert int(caught.value.where.rpartition(":")[2]) >= line


@pytest.mark.parametrize(
    "text",
    [
        "worker_init: {{ X | default('a') | shell_escape }} {{ Y | tojson }}",
        "{% include 'other.j2' %}{{ undefined_here.and_there }}",
        "{{ 'x' * 10 ** 12 }}{{ 1 // 0 }}{% for i in range(10 ** 12) %}{% endfor %}",
    ],
)
def test_nothing_is_included_or_worked_out(text: str) -> None:
    check_syntax(TEMPLATE, text)


def test_the_example_passes() -> None:
    check_syntax(TEMPLATE, example_files()[TEMPLATE.name])
