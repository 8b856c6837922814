if [ "$action" = remove ] && systemd_runs; then
    systemctl disable --now mep-relay.service || true
fi
