"""The example endpoint of etc/mep/example: `python -m mep.config.example DIRECTORY` regenerates it."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from mep.config.option_docs import commented_config
from mep.config.paths import CONFIG, FIVE_FILES

_VALUES = {"relay_url": "https://relay.example.org", "display_name": "Example site", "multi_user": True}


def default_file(name: str) -> str:
    """Return the default text of one of the five files (config.yaml has none: it is generated)."""
    return resources.files("mep.config").joinpath("defaults", name).read_text()


def example_files() -> dict[str, str]:
    """Return the five files of the example by name."""
    return {name: commented_config(_VALUES) if name == CONFIG else default_file(name) for name in FIVE_FILES}


def main() -> None:
    """Write the example into the directory of the first argument."""
    for name, text in example_files().items():
        Path(sys.argv[1], name).write_text(text)


if __name__ == "__main__":
    main()
