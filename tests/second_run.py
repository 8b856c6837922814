"""Runs the few tests that failed in `make test` once more, with nothing beside them, and names those that now pass.

Called by the Makefile when a run has failed: `second_run.py PYTEST [OPTION...]`. The suite starts thousands of real
processes, four files of tests at once, on two cores. A test that passes only alone is a fault to be mended, of the
test or of the product, and this prints it where it can't be overlooked. A test that fails twice fails the run, and so
does a run with more than a few failures, or one that failed without a failed test. Tests marked `alone` have no second
run, since nothing ran beside them. `make test` clears pytest's cache first: it would also list tests of earlier runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MOST_FILES = 3
"""Files with failed tests that are run once more: all tests of a file may need the same site. More of them are no
matter of a busy host."""


def failed_tests(root: Path) -> list[str]:
    """Return the ids of the tests that failed in the last run in `root`, by pytest's cache."""
    try:
        return sorted(json.loads((root / ".pytest_cache/v/cache/lastfailed").read_text()))
    except FileNotFoundError:
        return []


def main(pytest: list[str], root: Path) -> int:
    """Run the failed tests again. Returns the exit status of `make test`."""
    failed = failed_tests(root)
    files = {test.partition("::")[0] for test in failed}
    if not all(Path(root, file).is_file() for file in files):
        print("second run: none, since the run itself has failed")
        return 1
    if not 0 < len(files) <= MOST_FILES:
        print(f"second run: none, with failed tests in {len(files)} files (it is for 1 to {MOST_FILES})")
        return 1
    print(f"second run, alone: {' '.join(failed)}", flush=True)
    status = subprocess.run([*pytest, *failed], cwd=root, check=False).returncode
    if status == 0:
        print(f"UNSTEADY: {len(failed)} failed beside other tests and passed alone; mend these:")
        print("\n".join(f"  {test}" for test in failed), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd()))
