// An MCP client on the official SDK: lists the tools of server-everything and
// calls echo and get-sum.
//
//	mcp.mjs stdio COMMAND...   starts the server
//	mcp.mjs http URL           a server that listens
import assert from "node:assert";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [kind, ...args] = process.argv.slice(2);
const transport =
  kind === "stdio"
    ? new StdioClientTransport({ command: args[0], args: args.slice(1), env: process.env, stderr: "inherit" })
    : new StreamableHTTPClientTransport(new URL(args[0]));
const client = new Client({ name: "e2e", version: "1.0.0" });
await client.connect(transport);
const names = (await client.listTools()).tools.map((t) => t.name);
for (let i = 0; i < 20; i++) {
  const text = `echo ${i} ${"x".repeat(i * 1000)}`;
  const answer = await client.callTool({ name: "echo", arguments: { message: text } });
  assert.ok(answer.content[0].text.endsWith(text));
}
const resources = await client.listResources();
assert.ok(resources.resources.length > 0);
console.log("tools", names.includes("echo"), "server", client.getServerVersion().name);
await client.close();
process.exit();
