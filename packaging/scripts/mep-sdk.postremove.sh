if [ "$action" = remove ]; then
    rm -rf /opt/mep-sdk
fi
