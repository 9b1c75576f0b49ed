// A program that only tsx can run as it is.
import { createServer, connect } from "node:net";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";

interface Answer { text: string }
const where: string = mkdtempSync(`${tmpdir()}/t-`) + "/s";
const server = createServer((c) => c.end(JSON.stringify({ text: "typed" } satisfies Answer))).listen(where, () => {
  connect(where).on("data", (d: Buffer) => {
    console.log((JSON.parse(d.toString()) as Answer).text);
    server.close();
  });
});
