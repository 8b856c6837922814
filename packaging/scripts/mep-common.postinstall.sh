if [ "$action" = install ] || [ "$action" = upgrade ]; then
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers mep.conf
    fi
    /usr/lib/mep/release install
fi
