"""ProcessPoolEngine: workers forked from a fork server on the user endpoint's own host."""
