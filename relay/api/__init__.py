"""The relay's HTTP API: routes, bodies, answers and the result stream."""
