import Redis from 'ioredis'
import { say, oneLine, failure } from './common.mjs'

const me = 'app:ioredis'
const db = new Redis({ host: process.env.REDIS_HOST, port: Number(process.env.REDIS_PORT), username: process.env.REDIS_USER, password: process.env.REDIS_PASSWORD })
await db.del(me, `${me}:n`, `${me}:hash`)
say('set', await db.set(me, 'value', 'EX', 100), await db.get(me), await db.get(`${me}:none`))
say('hash', await db.hset(`${me}:hash`, { a: 1, b: 2 }), await db.hgetall(`${me}:hash`))
say('pipeline', await db.pipeline().incr(`${me}:n`).incr(`${me}:n`).get(me).exec())
say('transaction', await db.multi().incr(`${me}:n`).get(me).exec())
say('refused', oneLine((await failure(db.get('other:1'))).message))
const mixed = await db.pipeline().get(me).get('other:1').get(me).exec()
say('pipeline with one refused', mixed.map(([e, value]) => e === null ? value : 'an error'))
say('aborted transaction', oneLine((await failure(db.multi().get('other:1').get(me).exec()))?.message))
say('after', await db.get(me))
const subscriber = db.duplicate()
const message = new Promise(resolve => subscriber.on('message', (...m) => resolve(m)))
say('subscribed', await subscriber.subscribe('app.news'))
say('published', await db.publish('app.news', 'hello'))
say('message', await message)
await subscriber.quit()
say('quit', await db.quit())
