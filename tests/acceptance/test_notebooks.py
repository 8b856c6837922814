"""The docs' notebooks run from top to bottom, without a browser, with tasks on a real endpoint."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.campus import Campus
from tests.support.science import PYTHON, environment, science_campus

NOTEBOOKS = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
RUN = """
import sys
import nbclient, nbformat
book = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(book, timeout=100, kernel_name="python3").execute()
finally:
    nbformat.write(book, sys.argv[2])
"""
SAYS = {
    "molecular-design": [
        "2126 molecules",
        "round 3: 100%",
        "chosen by the model",
        "79 succeeded",
        "image/png",
    ],
    "parameter-sweeps": ["48 sets of parameters", "20/20", "failed: 5", "TypeError", "16 results", "image/png"],
}


@pytest.fixture(scope="module")
def campus() -> Iterator[Campus]:
    with science_campus("books") as made:
        yield made


def code_cells(text: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]


def test_each_notebook_has_an_expectation() -> None:
    assert {each.stem for each in NOTEBOOKS.glob("*.ipynb")} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_outputs_are_not_kept(name: str) -> None:
    for cell in code_cells((NOTEBOOKS / f"{name}.ipynb").read_text()):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.parametrize("name", SAYS)
def test_a_notebook_runs(campus: Campus, tmp_path: Path, name: str) -> None:
    book, ran = tmp_path / "book.ipynb", tmp_path / "ran.ipynb"
    book.write_text((NOTEBOOKS / f"{name}.ipynb").read_text().replace("ENDPOINT_ID", campus.endpoint.id))
    command = [PYTHON, "-c", RUN, book, ran]
    done = subprocess.run(
        command, env=environment(campus, tmp_path), capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    shown = json.dumps([cell["outputs"] for cell in code_cells(ran.read_text())])
    assert not [each for each in SAYS[name] if each not in shown], shown[:20_000]
    assert "Warning" not in shown
