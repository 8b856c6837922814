#!/bin/sh
# The image's entry: `serve` with the addresses that a container needs; any other words go to mep-relay as they are.
set -eu
if [ "${1:-}" != serve ]; then
    exec mep-relay "$@"
fi
shift
set -- --state /var/lib/mep-relay --host 0.0.0.0 --link-host 0.0.0.0 --log-format json "$@"
if [ -n "${MEP_LINK_ADDRESS:-}" ]; then
    set -- --link-address "$MEP_LINK_ADDRESS" "$@"
fi
exec mep-relay serve "$@"
