"""The endpoint link: how managers and user endpoints reach the relay."""
