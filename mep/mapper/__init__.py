"""The mapper: the only process that decides which local user a start request means. Runs as account mep-idmap."""
