// A line "STEP: RESULT" for each step. A line that begins with "refused" is of a
// statement that is not granted. All others must be the same directly and through
// the sidecar.
export const first = 'SELECT id, customer, amount::text FROM orders ORDER BY id LIMIT 3'
export const secrets = 'SELECT value FROM secrets'
export const count = 'SELECT count(*)::int AS n FROM orders'

export const say = (step, ...result) => console.log(`${step}:`, ...result.map(r => JSON.stringify(r)))
export const oneLine = text => String(text).split(/\s+/).join(' ')
export const failure = async promise => { try { await promise; return undefined } catch (e) { return e } }
