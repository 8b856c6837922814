"""Every example of docs/sdk.md, run as a person would: as a separate script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_endpoint import FakeEndpoint
from tests.support.relay import RelayProcess

PAGE = (Path(__file__).parents[2] / "docs" / "sdk.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SAYS = [
    "tasks wait",
    "15",
    "pi is about 3",
    "('",
    "1000000",
    "{'a': 2, 'b': 1}",
    "ZeroDivisionError",
    "13 steps",
    "[1024]",
    "success",
    "0 5",
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    with RelayProcess(tmp_path_factory.mktemp("relay")) as relay:
        token = relay.add_user("ada@example.edu")
        with FakeEndpoint(relay, token) as endpoint:
            yield endpoint.endpoint_id, {**os.environ, "MEP_RELAY_URL": relay.url, "MEP_TOKEN": token}


def test_each_example_has_an_expectation():
    assert len(EXAMPLES) == len(SAYS)


@pytest.mark.parametrize(("example", "says"), list(zip(EXAMPLES, SAYS, strict=False)), ids=SAYS)
def test_the_example_runs(site, tmp_path, example, says):
    endpoint_id, environment = site
    script = tmp_path / "script.py"
    script.write_text(example.replace("ENDPOINT_ID", endpoint_id))
    run = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert says in run.stdout
    assert run.stderr == ""
