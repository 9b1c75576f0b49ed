# postgres.sh BIN: makes a cluster, serves it on a Unix socket and on the loopback, asks it.
set -eu
PATH=$1:$PATH
data=$(mktemp -d)
initdb -D "$data/d" -A trust -E UTF8 --locale=C --no-sync >"$data/log" 2>&1 || { cat "$data/log"; exit 1; }
pg_ctl -D "$data/d" -w -t 30 -l "$data/log" -o "-k $data -c fsync=off" start >/dev/null || { cat "$data/log"; exit 1; }
echo "unix: $(psql -h "$data" -d postgres -Atc 'select 6*7')"
echo "owner: $([ "$(psql -h "$data" -d postgres -Atc 'select current_user')" = "$(whoami)" ] && echo me)"
echo "tcp: $(psql -h 127.0.0.1 -d postgres -Atc 'select 6*7')"
pg_ctl -D "$data/d" -w -m fast stop >/dev/null
echo stopped
