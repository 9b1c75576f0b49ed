// client.mjs LIBRARY URL [METHOD [SIZE [chunked|SECONDS]]] makes one request as programs
// that use the library do, and prints what it saw as one JSON object.
import { createHash } from "node:crypto"
import { Readable } from "node:stream"
import { setTimeout as pause } from "node:timers/promises"

const [library, url, method = "GET", size = "0", how = ""] = process.argv.slice(2)
const limit = Number(process.env.LIMIT ?? 20) * 1000
const seen = {}
let begun = performance.now()
const now = name => { seen[name + " seconds"] ??= ((performance.now() - begun) / 1000).toFixed(3) }
const whole = Buffer.alloc(Number(size), "0123456789abcdef")

const sum = createHash("sha256")
let length = 0, begin = ""
function take(data) {
  now("first")
  sum.update(data)
  length += data.length
  if (begin.length < 400) begin += data.toString("latin1").slice(0, 400)
}
function head(status, headers) {
  now("head")
  seen.status = String(status)
  for (const [name, value] of Object.entries(headers)) if (!name.startsWith(":")) seen["header " + name.toLowerCase()] = [].concat(value).join(" | ")
}
function trailers(all) {
  for (const [name, value] of Object.entries(all ?? {})) seen["trailer " + name.toLowerCase()] = String(value)
}
async function* pieces() {
  const seconds = Number(how) || 0
  for (let at = 0; at < whole.length; at += 65536) {
    if (seconds) await pause(seconds * 1000 * 65536 / whole.length)
    yield whole.subarray(at, at + 65536)
  }
}
const streamed = how !== ""
function classify(error) {
  const chain = []
  for (let e = error; e; e = e.cause ?? e.errors?.[0]) chain.push(e)
  const text = chain.map(e => `${e.name} ${e.code ?? ""} ${e.message}`).join("; ")
  seen._error = text.slice(0, 600)
  const has = (...parts) => parts.some(part => text.includes(part))
  if (has("CERT", "certificate")) return "tls"
  if (has("TIMEOUT", "TimeoutError", "timeout", "timed out")) return "timeout"
  if (has("NGHTTP2_")) return "stream " + text.match(/NGHTTP2_\w+/)[0]
  if (has("ECONNRESET", "EPIPE") && !has("socket hang up", "aborted")) return "reset"
  if (has("hang up", "UND_ERR_SOCKET", "other side closed", "aborted", "terminated", "premature", "Premature")) return "eof"
  if (has("HPE_")) return "protocol"
  if (has("ECONNREFUSED")) return "refused"
  return text
}

async function drain(stream) {
  for await (const data of stream) take(Buffer.from(data))
}

async function viaHTTP() {
  const { request, Agent } = url.startsWith("https:") ? await import("node:https") : await import("node:http")
  const agent = new Agent({ keepAlive: true })
  const headers = streamed ? {} : { "content-length": whole.length }
  const answer = await new Promise((resolve, reject) => {
    const req = request(url, { method, agent, headers: whole.length ? headers : {}, timeout: limit })
    req.on("response", resolve).on("error", reject).on("timeout", () => req.destroy(new Error("timeout")))
    req.on("information", info => { seen.interim = (seen.interim ?? "") + " " + info.statusCode })
    if (streamed) Readable.from(pieces()).pipe(req); else req.end(whole)
  })
  head(answer.statusCode, answer.headers)
  await drain(answer)
  trailers(answer.trailers)
}

async function viaFetch(fetch, more = {}) {
  const body = streamed ? Readable.toWeb(Readable.from(pieces())) : whole
  const answer = await fetch(url, { method, ...(whole.length ? { body, duplex: "half" } : {}), signal: AbortSignal.timeout(limit), ...more })
  head(answer.status, Object.fromEntries(answer.headers))
  seen.redirected = String(answer.redirected)
  if (answer.body) await drain(answer.body)
}

async function viaUndici() {
  const { request, EnvHttpProxyAgent } = await import("undici")
  const answer = await request(url, { method, ...(whole.length ? { body: streamed ? Readable.from(pieces()) : whole } : {}), dispatcher: new EnvHttpProxyAgent(), headersTimeout: limit, bodyTimeout: limit })
  head(answer.statusCode, answer.headers)
  await drain(answer.body)
  trailers(answer.trailers)
}

async function viaAxios() {
  const { default: axios } = await import("axios")
  const answer = await axios({ url, method, ...(whole.length ? { data: streamed ? Readable.from(pieces()) : whole } : {}), responseType: "stream", validateStatus: () => true, timeout: limit, maxBodyLength: Infinity })
  head(answer.status, { ...answer.headers })
  await drain(answer.data)
}

async function viaGot(http2) {
  const { default: got } = await import("got")
  const stream = got.stream(url, { method, http2, throwHttpErrors: false, retry: { limit: 0 }, timeout: { request: limit }, ...(whole.length ? { body: streamed ? Readable.from(pieces()) : whole } : {}) })
  stream.on("response", answer => head(answer.statusCode, answer.headers))
  await drain(stream)
}

async function viaHTTP2() {
  const { connect } = await import("node:http2")
  const target = new URL(url), session = connect(target.origin)
  await new Promise((resolve, reject) => {
    session.on("error", reject)
    session.on("goaway", code => { seen.goaway = String(code) })
    const stream = session.request({ ":method": method, ":path": target.pathname + target.search }, { endStream: !whole.length })
    stream.setTimeout(limit, () => reject(new Error("timeout")))
    stream.on("headers", h => { seen.interim = (seen.interim ?? "") + " " + h[":status"] })
    stream.on("response", h => head(h[":status"], h)).on("trailers", trailers).on("data", take).on("error", reject).on("close", resolve)
    if (whole.length) { if (streamed) Readable.from(pieces()).pipe(stream); else stream.end(whole) }
  })
  session.destroy()
}

async function viaWS() {
  const { default: WebSocket } = await import("ws")
  await new Promise((resolve, reject) => {
    const socket = new WebSocket(url, ["chat"])
    let n = 0
    const messages = ["hello", "long ".repeat(50000), Buffer.alloc(2000, "\xff"), "close 4001"]
    socket.on("open", () => { seen.subprotocol = socket.protocol; seen.extensions = socket.extensions; socket.ping() })
    socket.on("pong", () => { seen.ping = "answered"; socket.send(messages[0]) })
    socket.on("message", (data, binary) => {
      seen["message " + n] = `${binary} ${data.length} ${createHash("sha256").update(data).digest("hex").slice(0, 16)}`
      socket.send(messages[++n])
    })
    socket.on("close", (code, reason) => { seen.close = `${code} ${reason}`; resolve() })
    socket.on("unexpected-response", (_, answer) => { seen.status = String(answer.statusCode); resolve() })
    socket.on("error", reject)
    setTimeout(() => reject(new Error("timeout")), limit)
  })
}

async function viaGRPC() {
  const grpc = await import("@grpc/grpc-js")
  const [address, call, message] = url.split(",")
  const plain = address.startsWith("plain:")
  const client = new grpc.Client(address.replace("plain:", ""), plain ? grpc.credentials.createInsecure() : grpc.credentials.createSsl())
  const same = b => b
  const encoded = Buffer.concat([Buffer.from([10, message.length]), Buffer.from(message)])
  const metadata = new grpc.Metadata()
  metadata.set("x-asked", "yes")
  metadata.set("x-blob-bin", Buffer.from([0, 255]))
  const options = { deadline: Date.now() + limit }
  await new Promise(resolve => {
    let n = 0
    const done = status => {
      seen["grpc-status"] = grpc.status[status.code]
      seen._error = status.details
      for (const [name, value] of Object.entries(status.metadata?.getMap() ?? {})) seen["trailer " + name] = String(value)
      resolve()
    }
    if (call === "Unary") {
      client.makeUnaryRequest("/chaperone.differential.Echo/Unary", same, same, encoded, metadata, options, (_, value) => { seen.body = value?.toString("hex").slice(0, 100) ?? "" }).on("status", done)
    } else {
      const stream = client.makeBidiStreamRequest("/chaperone.differential.Echo/" + call, same, same, metadata, options)
      stream.on("data", () => { now("first"); seen.messages = String(++n) }).on("error", () => {}).on("status", done)
      for (let i = 0; i < 3; i++) stream.write(encoded)
      stream.end()
    }
  })
}

const clients = {
  http: viaHTTP, fetch: () => viaFetch(fetch), "undici-fetch": async () => { const u = await import("undici"); await viaFetch(u.fetch, { dispatcher: new u.EnvHttpProxyAgent() }) },
  undici: viaUndici, axios: viaAxios, got: () => viaGot(false), "got-h2": () => viaGot(true), http2: viaHTTP2, ws: viaWS, "grpc-js": viaGRPC,
}
const modules = { undici: "undici", "undici-fetch": "undici", axios: "axios", got: "got", "got-h2": "got", ws: "ws", "grpc-js": "@grpc/grpc-js" }
await import(modules[library] ?? "node:https") // which takes its time
begun = performance.now()
try {
  await clients[library]()
} catch (error) {
  seen.error = classify(error)
}
seen.body ??= `${length} bytes ${sum.digest("hex").slice(0, 16)}`
seen._body = begin.slice(0, 400)
now("total")
console.log(JSON.stringify(seen))
process.exit(0)
