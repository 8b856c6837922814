"""mypy and pyright accept every sample of the docs in strict mode, and refuse wrong calls in them.

Parsl, joblib and scikit-learn have no types of their own. In samples that use them, the rules that only these break
are off: pyright ignores Parsl's decorators, so that an app seems to return its value.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.science import PYTHON

ROOT = Path(__file__).resolve().parents[2]
MYPY = Path(f"{sys.prefix}-tests", "bin", "mypy")
PYRIGHT = PYTHON.parents[1] / "node_modules" / ".bin" / "pyright"
TYPED = [
    "README.md",
    "mep_sdk/README.md",
    "docs/quickstart.md",
    "docs/first-hour.md",
    "docs/moving.md",
    "docs/sdk.md",
    "docs/asyncio.md",
    "docs/distributed.md",
]
UNTYPED = ["docs/parsl.md", "docs/joblib.md", "docs/data.md"]
WRONG = """
from mep_sdk import Executor

def add(a: int, b: int = 2) -> float:
    return a + b

executor = Executor("4b116d3c-1703-4f8f-9f6f-39921e5864df")
executor.submit(add, "1")
executor.submit(add, 1, c=3)
text: str = executor.submit(add, 1).result()
numbers: list[str] = list(executor.map(add, [1, 2]))

async def main() -> None:
    text: str = await executor.asubmit(add, 1)
"""


def write_samples(pages: list[str], place: Path) -> int:
    """Write each sample as a module; return their number."""
    samples = [
        (f"{page.replace('/', '_').removesuffix('.md')}_{number}.py", text)
        for page in pages
        for number, text in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M))
    ]
    for name, text in samples:
        (place / name).write_text(text)
    return len(samples)


def mypy(place: Path, *options: str) -> str:
    """Return what mypy prints about the modules in `place`."""
    words = ["--strict", "--scripts-are-modules", "--config-file=", "--python-executable", PYTHON]
    files = sorted(place.glob("*.py"))
    command = [MYPY, *words, "--cache-dir", place.parent / "mypy", *options, *files]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place, timeout=110).stdout


def pyright(place: Path, mode: str) -> list[str]:
    """Return the errors that pyright finds in the modules in `place`."""
    rules = {"typeCheckingMode": mode} | ({} if mode == "strict" else {"reportAttributeAccessIssue": False})
    (place / "pyrightconfig.json").write_text(json.dumps(rules))
    command = [PYRIGHT, "-p", place, "--pythonpath", PYTHON, "--outputjson"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    report = json.loads(ran.stdout)
    assert report["summary"]["filesAnalyzed"] == len(list(place.glob("*.py"))), ran.stdout
    return [
        f"{each['file']}: {each['range']['start']['line']}: {each['message']}" for each in report["generalDiagnostics"]
    ]


def test_every_page_with_samples_is_among_these() -> None:
    pages = ["README.md", "mep_sdk/README.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
    assert {page for page in pages if "```python" in (ROOT / page).read_text()} == {*TYPED, *UNTYPED}


@pytest.mark.parametrize(("pages", "mode"), [(TYPED, "strict"), (UNTYPED, "standard")], ids=["typed", "untyped"])
def test_every_sample_is_accepted(tmp_path: Path, pages: list[str], mode: str) -> None:
    count = write_samples(pages, tmp_path)
    assert pyright(tmp_path, mode) == []
    said = mypy(tmp_path, *([] if mode == "strict" else ["--disable-error-code=import-untyped"]))
    assert said == f"Success: no issues found in {count} source files\n"


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = [number for number, line in enumerate(WRONG.splitlines()) if re.search("submit|list", line)]
    found = [int(each.split(": ")[1]) for each in pyright(tmp_path, "strict")]
    assert sorted(set(found)) == lines
    assert mypy(tmp_path).count(": error:") == len(lines)
