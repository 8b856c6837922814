"""The examples of docs/data.md, on a real endpoint: by reference, in a file store, and with ProxyStore."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.campus import Campus
from tests.support.science import PYTHON, environment, science_campus

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
SAYS = ["1225", "1225", "[2.0, 4.0, 6.0]"]
"""The first two count to 50 here, and to 1000 on the page."""


@pytest.fixture(scope="module")
def science() -> Iterator[Campus]:
    with science_campus("data") as made:
        shared = Path(made.site.workplace, "shared")
        shared.mkdir()
        shared.chmod(0o1777)
        yield made


def test_each_example_has_an_expectation() -> None:
    assert len(EXAMPLES) == len(SAYS)


@pytest.mark.parametrize("number", range(len(SAYS)))
def test_an_example_does_what_the_page_says(science: Campus, tmp_path: Path, number: int) -> None:
    text = EXAMPLES[number].replace("ENDPOINT_ID", science.endpoint.id).replace("range(1000)", "range(50)")
    shared = Path(science.site.workplace, "shared")
    text = text.replace("/scratch/me", str(shared))
    for directory in ("mep-data", "proxystore"):
        (shared / directory).mkdir(exist_ok=True)
        (shared / directory).chmod(0o777)
    account = science.accounts["me"]
    options: dict[str, Any] = {"user": account.uid, "group": account.gid} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [PYTHON, "-"],
        input=text,
        env=environment(science, tmp_path),
        cwd=shared,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # the site's own account, as a file store is one account's
    )
    assert (done.returncode, done.stdout.strip()) == (0, SAYS[number]), done.stderr
