// An MCP client on the official SDK that writes and reads a file by
// server-filesystem: mcpfiles.mjs FOLDER COMMAND...
import assert from "node:assert";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [folder, command, ...args] = process.argv.slice(2);
const client = new Client({ name: "e2e", version: "1.0.0" });
await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
const path = `${folder}/written-by-mcp`;
await client.callTool({ name: "write_file", arguments: { path, content: "through MCP" } });
const answer = await client.callTool({ name: "read_text_file", arguments: { path } });
assert.equal(answer.content[0].text, "through MCP");
const shut = await client.callTool({ name: "read_text_file", arguments: { path: "/etc/passwd" } });
assert.ok(shut.isError);
console.log("file", answer.content[0].text);
await client.close();
process.exit();
