"""Brings tasks to user endpoints and results back: links, starts, delivery, result streams."""
