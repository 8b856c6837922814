if [ "$action" = remove ] && systemd_runs; then
    systemctl daemon-reload
fi
if [ "$action" = purge ]; then
    # `mep configure` made these accounts; their comments name the endpoint.
    grep -E '^[^:]*:[^:]*:[^:]*:[^:]*:MEP (manager|mapper) of /etc/mep/' /etc/passwd | cut -d: -f1 |
        while read -r account; do
            delete_account "$account"
        done
    rm -rf /etc/mep /var/lib/mep /run/mep
fi
