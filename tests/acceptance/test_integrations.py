"""Parsl, joblib, asyncio and scripts written for Dask: every example of their pages, on a real endpoint."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.campus import Campus, make_campus
from tests.support.science import PYTHON, environment, science_campus

DOCS = Path(__file__).resolve().parents[2] / "docs"
SAYS = {
    "parsl": [
        ["spread: ", "exit code: 0"],
        ["most frequent: ['to', 'a', 'one']"],
        ["sum of squares: 2470"],
    ],
    "joblib": [["last: 7880599"], ["best: {'C': 10, 'gamma': 0.1}"]],
    "asyncio": [["one: 49", "many: 40425", "as they end: 9", "as they end: 25"], ["given up, and cancelled"]],
    "distributed": [
        [
            "gathered: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]",
            "total: 55",
            "a dict: {'a': 'a!', 'b': 'b!'}",
            "one of them: 2",
            "one of them: 3",
            "without failures: [2, 4]",
        ]
    ],
}
CASES = [(page, number) for page, examples in SAYS.items() for number in range(len(examples))]


def examples_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def science() -> Iterator[Campus]:
    """An endpoint with the packages of these pages, but without Parsl's commands."""
    with science_campus("science") as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Campus]:
    """An endpoint as it is by default."""
    with make_campus("single", "plain") as made:
        made.endpoint.start()
        yield made


@pytest.mark.parametrize("page", SAYS)
def test_each_example_has_an_expectation(page: str) -> None:
    assert len(examples_of(page)) == len(SAYS[page])


@pytest.mark.parametrize(("page", "number"), CASES)
def test_the_example_runs(request: pytest.FixtureRequest, tmp_path: Path, page: str, number: int) -> None:
    campus: Campus = request.getfixturevalue("plain" if page == "parsl" else "science")
    script = tmp_path / "script.py"
    script.write_text(examples_of(page)[number].replace("ENDPOINT_ID", campus.endpoint.id))
    done = subprocess.run(
        [sys.executable if page == "parsl" else PYTHON, script],
        env=environment(campus, tmp_path),
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert not [each for each in SAYS[page][number] if each not in done.stdout], done.stdout
    assert "ResourceWarning" not in done.stderr


FAILING = """
import time
import joblib
import mep_sdk.joblib
mep_sdk.joblib.register()

def fail_at_three(number):
    if number == 3:
        raise ValueError("three")
    time.sleep(number)

with joblib.parallel_backend("mep", endpoint_id="ENDPOINT_ID"):
    try:
        joblib.Parallel(n_jobs=16)(joblib.delayed(fail_at_three)(number) for number in [0, 3, 600, 600, 600])
    except ValueError as error:
        print("raised:", error)
    print("again:", joblib.Parallel()(joblib.delayed(abs)(-number) for number in range(5)))
try:
    joblib.Parallel(n_jobs=0, backend=mep_sdk.joblib.MepBackend(endpoint_id="ENDPOINT_ID"))([joblib.delayed(abs)(1)])
except ValueError as error:
    print("refused:", error)
"""


def test_a_failure_within_joblib_cancels_the_other_calls(science: Campus, tmp_path: Path) -> None:
    """Two workers would be busy for ten minutes with the calls that sleep, if these went on."""
    script = tmp_path / "script.py"
    script.write_text(FAILING.replace("ENDPOINT_ID", science.endpoint.id))
    done = subprocess.run(
        [PYTHON, script], env=environment(science, tmp_path), capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "raised: three",
        "again: [0, 1, 2, 3, 4]",
        "refused: n_jobs is the number of batches to run at once, such as 16, or -1; not 0",
    ]
