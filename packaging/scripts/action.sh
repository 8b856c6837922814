# dpkg and rpm call scripts with different words: from here on, $action is install, upgrade, remove, purge or other.
# rpm gives the number of installed versions that will remain; packages.py sets $one, which says what 1 means here.
case "${1:-}" in
    configure) if [ -n "${2:-}" ]; then action=upgrade; else action=install; fi ;;
    install | upgrade | remove | purge) action=$1 ;;
    0) action=remove ;;
    1) action=$one ;;
    [2-9]*) action=upgrade ;;
    *) action=other ;;
esac

# Whether systemd runs here: not in a container image or a chroot.
systemd_runs() {
    [ -d /run/systemd/system ]
}

# Restarts the active units of a pattern, one after another. A unit that fails is named, and the others go on.
restart_active() {
    systemd_runs || return 0
    systemctl daemon-reload
    for unit in $(systemctl list-units --plain --no-legend --state=active "$1" | cut -d' ' -f1); do
        if ! invoke restart "$unit"; then
            echo "$unit did not start again: journalctl -u '$unit' says why" >&2
        fi
    done
}

# Uses Debian's command where it is: it respects a policy-rc.d of the site's.
invoke() {
    if command -v deb-systemd-invoke >/dev/null; then
        deb-systemd-invoke "$@"
    else
        systemctl "$@"
    fi
}

# Deletes a system account if it is there.
delete_account() {
    if getent passwd "$1" >/dev/null; then
        userdel "$1" || echo "account $1 was not removed" >&2
    fi
}
