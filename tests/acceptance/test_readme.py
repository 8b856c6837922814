"""The README's script runs as it stands, with the endpoint's id filled in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readmes_script_runs(campus: Any, tmp_path: Path) -> None:
    (script,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    file = tmp_path / "script.py"
    file.write_text(script.replace("ENDPOINT_ID", campus.endpoint.id))
    person = campus.person(campus.anybody)
    env = {"MEP_RELAY_URL": person.relay_url, "MEP_TOKEN": person.token, "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(file)], env=env, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    account = campus.accounts[campus.anybody]
    assert done.stdout.startswith(f"Hello from {account.name} (uid {account.uid}) on ")
