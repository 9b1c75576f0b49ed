// websocket.mjs ADDRESS PORT is a server of WebSockets by ws. It echoes, and closes
// with a code on "close CODE".
import { WebSocketServer } from "ws"
const [host, port] = process.argv.slice(2)
const server = new WebSocketServer({ host, port: Number(port), perMessageDeflate: true, handleProtocols: all => [...all][0] })
server.on("connection", socket => {
  socket.on("message", (data, binary) => {
    const code = !binary && data.length < 20 && data.toString().match(/^close (\d+)/)
    if (code) socket.close(Number(code[1]), "as asked"); else socket.send(data, { binary })
  })
  socket.on("error", () => {})
})
