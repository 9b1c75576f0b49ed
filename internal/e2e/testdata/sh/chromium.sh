# chromium.sh URL: renders a page, with its scripts, and prints the document. The
# browser has a trust store of its own, to which the first certificate of the
# bundle, the plugin's authority, is added.
set -eu
mkdir -p "$HOME/.pki/nssdb"
certutil -d "sql:$HOME/.pki/nssdb" -N --empty-password
certutil -d "sql:$HOME/.pki/nssdb" -A -t C,, -n chaperone -i "$SSL_CERT_FILE"
exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom "$1"
