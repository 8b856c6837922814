if [ "$action" = install ] || [ "$action" = upgrade ]; then
    if command -v systemd-tmpfiles >/dev/null; then
        systemd-tmpfiles --create mep.conf
    fi
    # The monitor and its helpers are replaced. People's user endpoints run on, and the new monitor takes them over.
    restart_active 'mep@*.service'
    /usr/lib/mep/release prune
fi
