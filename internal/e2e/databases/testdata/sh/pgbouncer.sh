# A pool inside the plugin, in each of its modes.
dir=$(mktemp -d)
trap 'kill $(cat "$dir/pid") 2>/dev/null; rm -rf "$dir"' EXIT
PATH=$PATH:/usr/sbin
for mode in session transaction statement; do
    cat >"$dir/ini" <<INI
[databases]
* = host=$PGHOST port=$PGPORT user=$PGUSER password=$PGPASSWORD
[pgbouncer]
listen_addr =
unix_socket_dir = $dir
listen_port = 6432
auth_type = any
pool_mode = $mode
pidfile = $dir/pid
logfile = $dir/log
INI
    pgbouncer -q -d "$dir/ini" || exit 1
    for _ in $(seq 400); do # it listens after its start has returned
        [ -S "$dir/.s.PGSQL.6432" ] && [ -s "$dir/pid" ] && break
        sleep 0.05
    done
    echo "$mode:"
    PGHOST=$dir PGPORT=6432 psql -XAtq -c 'SELECT id, customer FROM orders ORDER BY id LIMIT 3' -c 'SELECT count(*) FROM orders'
    PGHOST=$dir PGPORT=6432 psql -XAtq -c 'SELECT value FROM secrets' 2>&1 | grep ERROR | sed 's/^/refused: /'
    PGHOST=$dir PGPORT=6432 psql -XAtq -c 'SELECT count(*) FROM orders'
    PGHOST=$dir PGPORT=6432 pgbench -n -c 3 -t 100 -M simple -f "$(dirname "$0")/one.pgbench" 2>&1 | grep -E 'actually processed|error|pgbench:'
    pid=$(cat "$dir/pid")
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
done
