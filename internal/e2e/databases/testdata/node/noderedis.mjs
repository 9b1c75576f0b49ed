import { createClient } from 'redis'
import { say, oneLine, failure } from './common.mjs'

const me = 'app:noderedis'
for (const RESP of [2, 3]) {
  const db = createClient({ socket: { host: process.env.REDIS_HOST, port: Number(process.env.REDIS_PORT) }, username: process.env.REDIS_USER, password: process.env.REDIS_PASSWORD, RESP })
  db.on('error', e => say('error event', oneLine(e.message)))
  await db.connect()
  await db.del([me, `${me}:n`, `${me}:hash`])
  say('set', await db.set(me, 'value', { EX: 100 }), await db.get(me), await db.get(`${me}:none`))
  say('hash', await db.hSet(`${me}:hash`, { a: '1', b: '2' }), await db.hGetAll(`${me}:hash`))
  say('pipeline', await Promise.all([db.incr(`${me}:n`), db.incr(`${me}:n`), db.get(me)]))
  say('transaction', await db.multi().incr(`${me}:n`).get(me).exec())
  say('refused', oneLine((await failure(db.get('other:1'))).message))
  say('pipeline with one refused', (await Promise.allSettled([db.get(me), db.get('other:1'), db.get(me)])).map(r => r.status))
  say('refused in a transaction', oneLine((await failure(db.multi().get('other:1').get(me).exec()))?.message))
  say('after', await db.get(me))
  const subscriber = db.duplicate()
  subscriber.on('error', e => say('error event', oneLine(e.message)))
  await subscriber.connect()
  let arrived
  const message = new Promise(resolve => { arrived = resolve })
  await subscriber.subscribe('app.news', (...m) => arrived(m))
  say('published', await db.publish('app.news', 'hello'))
  say('message', await message)
  await subscriber.close()
  await db.close()
}
