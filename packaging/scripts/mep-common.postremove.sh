if [ "$action" = remove ]; then
    rm -rf /opt/mep/releases /opt/mep/current
    if [ -d /opt/mep ]; then
        rmdir --ignore-fail-on-non-empty /opt/mep
    fi
fi
if [ "$action" = purge ]; then
    for account in mep mep-idmap mep-register mep-relay; do
        delete_account "$account"
    done
fi
