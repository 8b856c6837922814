if [ "$action" = install ] || [ "$action" = upgrade ]; then
    site=$(echo /opt/mep-sdk/lib/python*/site-packages)
    # Byte code for the Python that is here. It names the source's hash: after the next upgrade it is not taken by mistake.
    /opt/mep-sdk/bin/python -I -m compileall -q -f -j 0 --invalidation-mode checked-hash "$site" >/dev/null 2>&1 || true
fi
