"""The administrator's files: their allowed content, reading them safely, and resolving them for the monitor."""
