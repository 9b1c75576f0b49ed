// Does what Node.js plugins do, and prints "ok NAME" or "broken NAME: WHY" for each.
// With the argument "network" it also asks the origins that E2E_HTTPS and E2E_HTTP name.
import assert from "node:assert";
import child from "node:child_process";
import cluster from "node:cluster";
import dns from "node:dns";
import { once } from "node:events";
import fs from "node:fs";
import http from "node:http";
import https from "node:https";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";

const self = fileURLToPath(import.meta.url);
const role = process.env.E2E_ROLE;

if (role === "forked") {
  process.on("message", (m) => process.send(m * 2, () => process.exit()));
} else if (role === "clustered") {
  http.createServer((_, res) => res.end("worker")).listen(Number(process.env.E2E_PORT), "127.0.0.1");
} else {
  await main();
}

async function folder() {
  return fs.promises.mkdtemp(path.join(os.tmpdir(), "n-"));
}

async function echo(where) {
  const server = net.createServer((c) => c.pipe(c)).listen(where);
  await once(server, "listening");
  const c = net.connect(typeof where === "string" ? where : server.address().port);
  c.write("x");
  const [data] = await once(c, "data");
  c.destroy();
  server.close();
  return data.toString();
}

async function worker() {
  const w = new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
  const [got] = await once(w, "message");
  return got;
}

async function forked() {
  const c = child.fork(self, { env: { ...process.env, E2E_ROLE: "forked" } });
  c.send(21);
  const [got] = await once(c, "message");
  await once(c, "exit");
  return got;
}

async function clustered() {
  const probe = net.createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const port = probe.address().port;
  probe.close();
  await once(probe, "close");
  cluster.setupPrimary({ exec: self });
  const workers = [1, 2].map(() => cluster.fork({ E2E_ROLE: "clustered", E2E_PORT: port }));
  await Promise.all(workers.map((w) => once(w, "listening")));
  const got = await (await fetch(`http://127.0.0.1:${port}/`)).text();
  workers.forEach((w) => w.process.kill());
  await Promise.all(workers.map((w) => once(w, "exit")));
  return got;
}

async function watched() {
  const dir = await folder();
  const w = fs.watch(dir);
  const changed = once(w, "change");
  fs.writeFileSync(path.join(dir, "f"), "x");
  const [, name] = await changed;
  w.close();
  return name;
}

async function home() {
  const file = path.join(os.homedir(), ".e2e-probe");
  await fs.promises.writeFile(file, "x");
  await fs.promises.unlink(file);
}

function user() {
  const u = os.userInfo();
  assert.equal(u.uid, process.getuid());
  assert.equal(u.username, process.env.USER);
  assert.equal(u.homedir, os.homedir());
}

async function served() {
  const server = http.createServer((req, res) => res.end(req.url)).listen(0, "localhost");
  await once(server, "listening");
  const got = await (await fetch(`http://localhost:${server.address().port}/a`)).text();
  server.close();
  return got;
}

function piped() {
  return child.execFileSync("sh", ["-c", "cat | tr a-z A-Z"], { input: "piped" }).toString();
}

function get(module, url) {
  return new Promise((resolve, reject) => {
    module.get(url, (res) => {
      let text = "";
      res.on("data", (d) => (text += d));
      res.on("end", () => resolve(text));
    }).on("error", reject);
  });
}

async function hello(answer) {
  assert.equal(await answer, "hello GET\n");
}

async function refused() {
  assert.equal((await fetch(process.env.E2E_REFUSED)).status, 403);
}

async function resolved() {
  const found = await dns.promises.lookup(process.env.E2E_HOST, { all: true });
  assert.ok(found.length > 0);
  assert.ok(net.isIP((await dns.promises.resolve4(process.env.E2E_HOST))[0]));
  await assert.rejects(dns.promises.lookup("no-such-name.test.example"));
}

async function check(name, f, show) {
  let timer;
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("25 s are over")), 25000)));
  try {
    const value = await Promise.race([f(), late]);
    console.log(show && value !== undefined ? `ok ${name}: ${value}` : `ok ${name}`);
  } catch (e) {
    console.log(`broken ${name}: ${e}${e.cause ? ` (${e.cause})` : ""}`.replaceAll("\n", " "));
  }
  clearTimeout(timer);
}

async function main() {
  const local = {
    "worker thread": worker,
    fork: forked,
    cluster: clustered,
    "net path": async () => echo(path.join(await folder(), "s")),
    "net abstract": () => echo(`\0e2e-${process.pid}`),
    "net port": () => echo(0),
    "fs.watch": watched,
    home,
    userInfo: user,
    "http server": served,
    "child process": piped,
  };
  const network = {
    fetch: async () => hello((await fetch(process.env.E2E_HTTPS)).text()),
    "https.get": () => hello(get(https, process.env.E2E_HTTPS)),
    "http.get": () => hello(get(http, process.env.E2E_HTTP)),
    refused,
    names: resolved,
  };
  for (const [name, f] of Object.entries(local)) await check(name, f, true);
  if (process.argv.includes("network")) for (const [name, f] of Object.entries(network)) await check(name, f, false);
  process.exit();
}
