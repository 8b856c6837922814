if [ "$action" = remove ]; then
    # The units would leave user endpoints running, which cannot go on without the package: `mep stop` ends them too.
    for directory in /etc/mep/*/; do
        name=$(basename "$directory")
        if [ -e "/run/mep/$name" ]; then
            /opt/mep/bin/mep stop "$name" || echo "endpoint $name was not stopped" >&2
        fi
    done
    if systemd_runs; then
        systemctl stop 'mep@*.service' || true
    fi
    for link in /etc/systemd/system/*.wants/mep@*.service; do
        if [ -L "$link" ]; then
            rm -f "$link"
        fi
    done
fi
