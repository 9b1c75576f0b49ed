import asyncio
import io

import asyncpg

from common import *

ME = "asyncpg"


async def main():
    conn = await asyncpg.connect()  # from the environment
    say("select", [tuple(r) for r in await conn.fetch(FIRST)])
    statement = await conn.prepare("SELECT amount FROM orders WHERE id = $1")
    say("prepared", [await statement.fetchval(n) for n in range(1, 9)])
    await conn.execute("DELETE FROM notes WHERE client = $1", ME)
    try:
        async with conn.transaction():
            await conn.execute("INSERT INTO notes VALUES ($1, 1, 'lost')", ME)
            raise KeyError
    except KeyError:
        pass
    async with conn.transaction(isolation="repeatable_read"):
        await conn.executemany("INSERT INTO notes VALUES ($1, $2, $3)", [(ME, n, f"body {n}") for n in range(3)])
    say("transaction", [tuple(r) for r in await conn.fetch(NOTES.format(ME))])
    say("copy in", await conn.copy_records_to_table("notes", records=[(ME, n, "copied") for n in range(10, 1010)]))
    out = io.BytesIO()
    say("copy out", await conn.copy_from_query("SELECT id, customer FROM orders WHERE id < $1", 50, output=out), out.getvalue().count(b"\n"))
    async with conn.transaction(readonly=True):
        say("cursor", len([r async for r in conn.cursor("SELECT id FROM orders", prefetch=7)]))
    for name, text in [("division", "SELECT 1/0"), ("syntax", "SELECT 1 FROM"), ("unique", "INSERT INTO notes VALUES ('asyncpg', 1, 'again')")]:
        try:
            await conn.execute(text)
        except asyncpg.PostgresError as e:
            say(name, e.sqlstate, one_line(e), e.constraint_name)
    for refused in (conn.fetch, conn.execute):
        try:
            await refused(SECRETS)
        except asyncpg.PostgresError as e:
            say("refused", e.sqlstate, one_line(e))
    say("after", await conn.fetchval(COUNT))
    try:
        async with conn.transaction():
            try:
                await conn.fetch(SECRETS)
            except asyncpg.PostgresError as e:
                say("refused in a transaction", e.sqlstate, one_line(e))
            await conn.fetch(COUNT)
    except asyncpg.PostgresError as e:
        say("in the failed transaction", e.sqlstate)
    try:
        await conn.fetch("SELECT pg_sleep(30)", timeout=0.3)
    except asyncio.TimeoutError:
        say("cancel", "timeout")
    say("after the cancel", await conn.fetchval(COUNT))
    await conn.close()
    async with asyncpg.create_pool(min_size=2, max_size=4) as pool:
        async def one(n):
            async with pool.acquire() as c:
                return await c.fetchval("SELECT customer FROM orders WHERE id = $1", n)
        say("pool", await asyncio.gather(*[one(n) for n in range(1, 41)]))


asyncio.run(main())
