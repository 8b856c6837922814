if [ "$action" = remove ] && systemd_runs; then
    systemctl daemon-reload
fi
if [ "$action" = purge ]; then
    rm -rf /var/lib/mep-relay /etc/mep-relay.toml
fi
