"""Run as root inside a guest: the commands of the README's first screen as they stand, on .deb files of a directory.

apt-get gets two options that make it ask nothing and look for nothing. The guest's own Python imports this.
"""

import pathlib
import subprocess

README = pathlib.Path("/guest/README.md")
WAIT_S = 600


def blocks():
    """Return the installation, the three commands and the task."""
    section = README.read_text().partition("## Install it\n")[2].partition("\n## ")[0]
    found = [one for one in section.split("\n\n") if one.startswith("    ")]
    installation, configuration, task_block = ("\n".join(line[4:] for line in one.splitlines()) for one in found)
    return installation, configuration, task_block


def shell(script, directory):
    """Run commands by bash, and return their output. Raises AssertionError with all of it."""
    argv = ["bash", "-euc", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, cwd=directory, check=False)
    if done.returncode:
        raise AssertionError(f"{script}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def install(directory):
    """Install the packages and start the relay."""
    shell(blocks()[0].replace("apt-get", "apt-get -y -q --no-install-recommends"), directory)


def configure(directory):
    """Add the person, configure the endpoint and start it."""
    shell(blocks()[1], directory)


def task(directory, endpoint_id):
    """Run the task, and return its output."""
    return shell(blocks()[2].replace("ENDPOINT_ID", endpoint_id), directory).strip()
