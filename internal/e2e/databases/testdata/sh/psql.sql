\set ON_ERROR_STOP 0
\pset format unaligned
\pset pager off
\echo select:
SELECT id, customer, amount FROM orders ORDER BY id LIMIT 3;
\echo several:
SELECT 1 AS a\; SELECT count(*) FROM public.orders;
PREPARE amount (int) AS SELECT amount FROM orders WHERE id = $1;
EXECUTE amount (1);
EXECUTE amount (2);
DEALLOCATE amount;
DELETE FROM notes WHERE client = 'psql';
BEGIN;
INSERT INTO notes VALUES ('psql', 1, 'lost');
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
INSERT INTO notes VALUES ('psql', 1, 'kept');
SAVEPOINT one;
UPDATE notes SET body = 'lost' WHERE client = 'psql';
ROLLBACK TO one;
COMMIT;
SELECT n, body FROM notes WHERE client = 'psql';
\echo copy:
\copy notes FROM PROGRAM 'for n in 11 12 13; do printf "psql\t%s\tcopied\n" $n; done'
\copy (SELECT n FROM notes WHERE client = 'psql' ORDER BY n) TO STDOUT
COPY notes (client, n, body) FROM STDIN;
psql	21	copied
psql	22	copied
\.
\echo describe:
\d orders
\dt
\d
\dT+
\echo error:
SELECT 1/0;
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT value FROM secrets;
\echo refused: :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
SELECT value FROM secrets\; SELECT 2;
\echo refused: :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
\copy secrets FROM PROGRAM 'seq 1000'
\echo refused: :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
\echo after:
SELECT count(*) FROM orders;
BEGIN;
SELECT value FROM secrets;
SELECT 1;
\echo :LAST_ERROR_SQLSTATE :LAST_ERROR_MESSAGE
ROLLBACK;
SET statement_timeout = '300ms';
SELECT pg_sleep(30);
\echo :LAST_ERROR_SQLSTATE
RESET statement_timeout;
\gdesc
SELECT id, placed FROM orders \gdesc
\set FETCH_COUNT 7
SELECT count(id) FROM (SELECT id FROM orders) o;
SELECT id FROM orders ORDER BY id LIMIT 20;
\unset FETCH_COUNT
SELECT 'a' AS x, 'b' AS y, 1 AS v \crosstabview
\encoding
\echo end
