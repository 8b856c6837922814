"""The administrator's files: what may stand in them, reading them safely, and resolving them for the monitor."""
