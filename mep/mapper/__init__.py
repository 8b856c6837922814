"""The mapper: decides, alone, which local user a start request means. Runs as the account mep-idmap."""
