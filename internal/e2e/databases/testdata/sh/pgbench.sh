# Every protocol of pgbench, and a script with a statement that is not granted.
cd "$(dirname "$0")"
for mode in simple extended prepared; do
    echo "$mode:"
    pgbench -n -c 3 -t 100 -M $mode -f select.pgbench 2>&1 | grep -E 'query mode|actually processed|failed transactions|error|pgbench:'
done
pgbench -n -c 1 -t 1 -M simple -f refused.pgbench 2>&1 | grep ERROR | sed 's/^/refused: /'
