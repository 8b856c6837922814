"""Start-up, idling and shutdown of a user endpoint."""
