"""Who is asking: people by their tokens."""
