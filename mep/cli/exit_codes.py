"""Exit codes of `mep`, and the errors that lead to them. The texts are for the administrator at the terminal."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes of `mep`. 2 (wrong usage) is click's own."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    CONFIG = 4
    RELAY = 5
    TIMEOUT = 6
    NOT_PERMITTED = 7
    LINK_DOWN = 8
    REFUSED = 9
    OVERDUE = 10


EXIT_TEXT = """\b
Exit codes:
  0  done
  1  it failed (the text says why)
  2  wrong usage
  3  the endpoint is not running
  4  a configuration file is refused (file, line and key are named), or there is no such endpoint
  5  the relay cannot be reached or refuses
  6  it did not happen in time
  7  not permitted to this account
"""
"""The exit codes that every command has, for its help."""
STATUS_EXIT_TEXT = """\
  8  (status) it runs, and its link to the relay is down
  9  (status) it runs, and its mapping or its configuration was refused when last read
  10 (status) it runs, and the mapping or the account of a user endpoint was not confirmed for too long
"""
"""Those that only `mep status` has."""


class CliFailed(Exception):
    """A command failed: `text` gives the reason and the remedy, `exit_code` is the process's."""

    def __init__(self, text: str, exit_code: Exit = Exit.FAILED) -> None:
        self.text, self.exit_code = text, exit_code
        super().__init__(text)
