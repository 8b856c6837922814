"""The relay's dispatch and user endpoints in one deterministic world: time, links, crashes and losses from a seed."""
