if [ "$action" = install ] || [ "$action" = upgrade ]; then
    restart_active mep-relay.service
    /usr/lib/mep/release prune
fi
