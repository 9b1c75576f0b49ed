import postgres from 'postgres'
import { secrets, say, oneLine, failure } from './common.mjs'

const me = 'postgres.js'
const sql = postgres({ max: 3 }) // from the environment
say('select', await sql`SELECT id, customer, amount::text FROM orders ORDER BY id LIMIT 3`)
for (let n = 1; n < 8; n++) say('prepared', await sql`SELECT customer FROM orders WHERE id = ${n}`)
await sql`DELETE FROM notes WHERE client = ${me}`
await failure(sql.begin(async sql => {
  await sql`INSERT INTO notes ${sql({ client: me, n: 1, body: 'lost' })}`
  throw new Error('roll back')
}))
await sql.begin(async sql => {
  await sql`INSERT INTO notes ${sql([{ client: me, n: 1, body: 'kept' }, { client: me, n: 2, body: 'kept' }])}`
  await sql.savepoint(sql => sql`UPDATE notes SET body = 'changed' WHERE client = ${me} AND n = 2`)
})
say('transaction', await sql`SELECT n, body FROM notes WHERE client = ${me} ORDER BY n`)
say('array', await sql`SELECT id FROM orders WHERE id = ANY(${[1, 2, 3]}) ORDER BY id`)
let seen = 0
for await (const rows of sql`SELECT id FROM orders`.cursor(7)) seen += rows.length
say('cursor', seen)
const copied = await sql`COPY notes (client, n, body) FROM STDIN`.writable()
await new Promise((resolve, reject) => { copied.on('finish', resolve).on('error', reject); copied.end(`${me}\t10\tcopied\n`) })
say('copy', await sql`SELECT body FROM notes WHERE client = ${me} AND n = 10`)
say('division', (await failure(sql`SELECT 1/0`)).code)
say('unique', (await failure(sql`INSERT INTO notes VALUES (${me}, 1, 'again')`)).constraint_name)
for (let n = 0; n < 2; n++) {
  const e = await failure(sql.unsafe(secrets))
  say('refused', e.code, oneLine(e.message))
}
const e = await failure(sql`SELECT value FROM secrets WHERE id = ${1}`)
say('refused with a parameter', e.code, oneLine(e.message))
say('pipelined', (await Promise.allSettled(Array.from({ length: 30 }, (_, n) => n === 15 ? sql`SELECT value FROM secrets` : sql`SELECT id FROM orders WHERE id = ${n + 1}`))).map(r => r.status[0]).join(''))
say('after', await sql`SELECT count(*)::int FROM orders`)
await sql.end()
