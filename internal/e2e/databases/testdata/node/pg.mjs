import pg from 'pg'
import Cursor from 'pg-cursor'
import { from as copyFrom, to as copyTo } from 'pg-copy-streams'
import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'
import { first, secrets, count, say, oneLine, failure } from './common.mjs'

const me = 'node-postgres'
const client = new pg.Client() // from the environment
await client.connect()
say('select', (await client.query(first)).rows)
for (let n = 1; n < 4; n++) say('parameter', (await client.query('SELECT customer FROM orders WHERE id = $1', [n])).rows)
for (let n = 1; n < 4; n++) say('prepared', (await client.query({ name: 'amount', text: 'SELECT amount::text FROM orders WHERE id = $1', values: [n] })).rows)
await client.query('DELETE FROM notes WHERE client = $1', [me])
await client.query('BEGIN')
await client.query("INSERT INTO notes VALUES ($1, 1, 'lost')", [me])
await client.query('ROLLBACK')
await client.query('BEGIN')
say('insert', (await client.query("INSERT INTO notes VALUES ($1, 1, 'kept') RETURNING n, body", [me])).rows)
await client.query('COMMIT')
await pipeline(Readable.from(Array.from({ length: 1000 }, (_, n) => `${me}\t${n + 10}\tcopied\n`)), client.query(copyFrom('COPY notes FROM STDIN')))
let lines = 0
for await (const chunk of client.query(copyTo('COPY orders (id) TO STDOUT'))) lines += chunk.toString().split('\n').length - 1
say('copy', lines)
const cursor = client.query(new Cursor('SELECT id FROM orders ORDER BY id'))
say('cursor', (await cursor.read(3)).length, (await cursor.read(2)).map(r => r.id))
await cursor.close()
say('division', (await failure(client.query('SELECT 1/0'))).code)
say('unique', (await failure(client.query("INSERT INTO notes VALUES ($1, 1, 'again')", [me]))).constraint)
for (const refused of [secrets, { name: 'secrets', text: secrets }]) {
  const e = await failure(client.query(refused))
  say('refused', e.code, oneLine(e.message))
}
await client.query('BEGIN')
say('refused in a transaction', oneLine((await failure(client.query(secrets))).message))
say('in the failed transaction', (await failure(client.query(count))).code)
await client.query('ROLLBACK')
say('after', (await client.query(count)).rows)
const all = await Promise.allSettled([client.query(count), client.query(secrets), client.query(count)])
say('queued', all.map(r => r.status))
say('several', (await client.query('SELECT 1 AS a; SELECT 2 AS b')).map(r => r.rows))
await client.end()
const pool = new pg.Pool({ max: 4 })
say('pool', (await Promise.all(Array.from({ length: 40 }, (_, n) => pool.query('SELECT customer FROM orders WHERE id = $1', [n + 1])))).every(r => r.rows.length === 1))
await pool.end()
