# busybox.sh HOST URL: a static program's client, resolver and server.
set -eu
busybox wget -q -O - "$2"
busybox nslookup "$1" | grep -q "Name:.*$1" && echo "nslookup found it"
busybox nslookup no-such-name.test.example >/dev/null 2>&1 || echo "nslookup found nothing"
port=8099
(echo served | busybox nc -l -p "$port" >/dev/null) &
for _ in $(seq 100); do
    if got=$(echo | busybox nc -w 5 127.0.0.1 "$port" 2>/dev/null) && [ -n "$got" ]; then
        echo "nc: $got"
        exit 0
    fi
    sleep 0.05
done
exit 1
