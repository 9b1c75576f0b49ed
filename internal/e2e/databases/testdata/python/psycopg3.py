import threading
import time

import psycopg

from common import *

ME = "psycopg3"
with psycopg.connect("") as conn:  # all from the environment, as libpq does
    say("select", conn.execute(FIRST).fetchall())
    say("prepared", [conn.execute("SELECT amount FROM orders WHERE id = %s", [n]).fetchone()[0] for n in range(1, 9)])
    with conn.cursor(binary=True) as cur:
        say("binary", cur.execute("SELECT id, placed, ARRAY[id, 2] FROM orders WHERE id = ANY(%s) ORDER BY id", [[1, 2]]).fetchall())
    conn.execute("DELETE FROM notes WHERE client = %s", [ME])
    conn.commit()
    try:
        with conn.transaction():
            conn.execute("INSERT INTO notes VALUES (%s, 1, 'lost')", [ME])
            with conn.transaction():
                conn.execute("INSERT INTO notes VALUES (%s, 2, 'lost')", [ME])
            raise psycopg.Rollback()
    except psycopg.Rollback:
        pass
    with conn.transaction():
        conn.cursor().executemany("INSERT INTO notes VALUES (%s, %s, %s)", [(ME, n, f"body {n}") for n in range(3)])
    say("transaction", conn.execute(NOTES.format(ME)).fetchall())
    with conn.cursor() as cur:
        with cur.copy("COPY notes (client, n, body) FROM STDIN") as copy:
            for n in range(10, 2010):
                copy.write_row((ME, n, "copied"))
        say("copy in", cur.rowcount)
        with cur.copy("COPY (SELECT n, body FROM notes WHERE client = 'psycopg3') TO STDOUT") as copy:
            say("copy out", len(list(copy.rows())))
    conn.commit()
    for name, text in [("division", "SELECT 1/0"), ("syntax", "SELECT 1 FROM"), ("unique", "INSERT INTO notes VALUES ('psycopg3', 1, 'again')")]:
        try:
            conn.execute(text)
        except psycopg.Error as e:
            say(name, e.sqlstate, one_line(e.diag.message_primary), e.diag.constraint_name)
        conn.rollback()
    try:
        conn.execute(SECRETS)
    except psycopg.Error as e:
        say("refused", e.sqlstate, one_line(e))
    try:
        conn.execute(COUNT)
    except psycopg.Error as e:
        say("in the failed transaction", e.sqlstate)
    conn.rollback()
    say("after", conn.execute(COUNT).fetchone())
    conn.commit()
    with conn.pipeline():
        a = conn.execute(FIRST)
        b = conn.execute("SELECT customer FROM orders WHERE id = %s", [5])
        say("pipeline", a.fetchall(), b.fetchall())
    conn.commit()
    conn.autocommit = True
    try:
        with conn.pipeline() as p:
            conn.execute(COUNT)
            p.sync()
            conn.execute(SECRETS)
            conn.execute(COUNT)
            p.sync()
            conn.execute(COUNT)
    except psycopg.Error as e:
        say("refused in a pipeline", e.sqlstate, one_line(e))
    say("after the pipeline", conn.execute(COUNT).fetchone())
    with psycopg.ServerCursor(conn, "named", withhold=True) as cur:
        cur.itersize = 7
        say("cursor", sum(1 for _ in cur.execute("SELECT id FROM orders")))
    timer = threading.Timer(0.3, conn.cancel_safe)
    timer.start()
    begun = time.monotonic()
    try:
        conn.execute("SELECT pg_sleep(30)")
    except psycopg.Error as e:
        say("cancel", e.sqlstate, time.monotonic() - begun < 10)
    timer.join()
    say("large", len(conn.execute("SELECT repeat('x', 10000000)").fetchone()[0]))
    say("end", conn.execute(COUNT).fetchone())
