# chromium.sh URL: renders a page, with its scripts, and prints the document.
set -eu
exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --virtual-time-budget=10000 --dump-dom "$1"
