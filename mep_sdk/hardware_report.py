"""What a worker's machine has, as text for people. Runs in the worker."""

from __future__ import annotations


def hardware_report(title: str = "Worker") -> str:
    """Return the node's name, system, processors, memory, disks, GPUs and Python, line by line."""
    import os
    import platform
    import shutil
    import subprocess
    import sys

    def answer(*command: str) -> str:
        if shutil.which(command[0]) is None:
            return ""
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return ran.stdout.strip() if ran.returncode == 0 else ""

    memory = answer("free", "-h")
    facts = {
        "node": platform.node(),
        "system": platform.platform(),
        "python": f"{platform.python_version()} at {sys.executable}",
        "processors": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} for this process",
        "memory": "\n" + memory if memory else "",
        "disk here": "{:.1f} GB free of {:.1f} GB".format(*(each / 1e9 for each in shutil.disk_usage(".")[2::-2])),
        "GPUs": answer("nvidia-smi", "-L"),
        "processor": "\n" + answer("lscpu"),
    }
    return "\n".join([title, *(f"{name}: {value}" for name, value in facts.items() if value.strip())])
