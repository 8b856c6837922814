"""When a user endpoint begins, idles and ends."""
