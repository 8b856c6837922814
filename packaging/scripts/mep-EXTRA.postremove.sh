if [ "$action" = remove ]; then
    rm -rf /opt/mep/extras/EXTRA
    rmdir --ignore-fail-on-non-empty /opt/mep/extras /opt/mep 2>/dev/null || true
fi
