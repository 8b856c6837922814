"""The manager: holds the link to the relay and forwards start requests. Runs as the account mep."""
