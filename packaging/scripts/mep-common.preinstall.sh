if [ -f /opt/mep/pyvenv.cfg ] && [ ! -L /opt/mep/pyvenv.cfg ]; then
    echo "/opt/mep was made by \`make install\`: stop what runs from it, then remove /opt/mep, /opt/mep-build and /opt/mep-tests" >&2
    exit 1
fi
