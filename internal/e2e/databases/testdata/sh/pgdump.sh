# pg_dump writes random tokens for psql into its output.
pg_dump --no-owner --no-privileges --table=public.orders 2>&1 | grep -v -E '^\\(un)?restrict '
pg_dump --data-only --inserts --table=public.orders 2>&1 | grep -c INSERT
pg_dump --format=custom --table=public.orders | pg_restore --list | grep -v '^;'
pg_dump --no-owner --table=public.secrets 2>&1 | grep -i error | sed 's/^/refused: /'
