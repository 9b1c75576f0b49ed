// server.mjs ADDRESS PORT MILLISECONDS is Node.js's server as its documentation
// shows it: it closes connections that are idle for so long.
import { createServer } from "node:http"
const [address, port, idle] = process.argv.slice(2)
const server = createServer((req, res) => {
  let length = 0
  req.on("data", data => { length += data.length })
  req.on("end", () => res.end(`${req.method} ${length}\n`))
})
server.keepAliveTimeout = Number(idle)
server.keepAliveTimeoutBuffer = 0
server.listen(Number(port), address)
