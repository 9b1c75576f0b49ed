import io

import psycopg2
import psycopg2.extras

from common import *

ME = "psycopg2"
conn = psycopg2.connect("")
cur = conn.cursor()
cur.execute(FIRST)
say("select", cur.fetchall())
cur.execute("PREPARE amount (int) AS SELECT amount FROM orders WHERE id = $1")
amounts = []
for n in range(1, 4):
    cur.execute("EXECUTE amount (%s)", [n])
    amounts.append(cur.fetchone()[0])
cur.execute("DEALLOCATE amount")
say("prepared", amounts)
cur.execute("DELETE FROM notes WHERE client = %s", [ME])
conn.commit()
cur.execute("INSERT INTO notes VALUES (%s, 1, 'lost')", [ME])
conn.rollback()
psycopg2.extras.execute_values(cur, "INSERT INTO notes VALUES %s", [(ME, n, f"body {n}") for n in range(3)])
conn.commit()
cur.execute(NOTES.format(ME))
say("transaction", cur.fetchall())
cur.copy_expert("COPY notes (client, n, body) FROM STDIN", io.StringIO("".join(f"{ME}\t{n}\tcopied\n" for n in range(10, 510))))
out = io.StringIO()
cur.copy_expert("COPY orders (id, customer) TO STDOUT WITH CSV HEADER", out)
say("copy", out.getvalue().count("\n"))
conn.commit()
with conn.cursor("named") as named:
    named.itersize = 7
    named.execute("SELECT id FROM orders")
    say("cursor", sum(1 for _ in named))
conn.commit()
for name, text in [("division", "SELECT 1/0"), ("syntax", "SELECT 1 FROM"), ("unique", "INSERT INTO notes VALUES ('psycopg2', 1, 'again')")]:
    try:
        cur.execute(text)
    except psycopg2.Error as e:
        say(name, e.pgcode, one_line(e.diag.message_primary), e.diag.constraint_name)
    conn.rollback()
try:
    cur.execute(SECRETS)
except psycopg2.Error as e:
    say("refused", e.pgcode, one_line(e))
try:
    cur.execute(COUNT)
except psycopg2.Error as e:
    say("in the failed transaction", e.pgcode)
conn.rollback()
conn.set_session(autocommit=True)
try:
    cur.copy_expert("COPY secrets FROM STDIN", io.StringIO("1\tx\n" * 1000))
except psycopg2.Error as e:
    say("refused copy", e.pgcode, one_line(e))
cur.execute(COUNT)
say("after", cur.fetchone())
conn.set_session(isolation_level="SERIALIZABLE", autocommit=False)
cur.execute(COUNT)
say("serializable", cur.fetchone())
conn.close()
