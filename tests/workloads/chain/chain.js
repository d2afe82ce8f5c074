// As threads.py, with Node's http module.
const crypto = require("crypto");
const fs = require("fs");
const http = require("http");
const { parseArgs } = require("util");

const BODY = "it has been answered";
const FAMILIES = {
  none: [],
  traceparent: ["traceparent", "tracestate"],
  b3: ["b3"],
  b3multi: ["X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Sampled"],
  "uber-trace-id": ["uber-trace-id"],
  "x-request-id": ["x-request-id"],
};
FAMILIES.all = Object.values(FAMILIES).flat();

const text = (fallback) => ({ type: "string", default: fallback });
const { values: options } = parseArgs({
  options: {
    port: text("0"),
    next: { type: "string", multiple: true, default: [] },
    pass: text("none"),
    child: { type: "boolean", default: false },
    log: text("/dev/null"),
    mode: text("single"),
    cron: text("0"),
    name: text(""),
  },
});
const names = FAMILIES[options.pass];
if (!names || !["single", "fan", "sequence", "retry", "late", "stream"].includes(options.mode)) {
  throw new Error("no such mode or family of headers");
}
const calling = options.next.length > 0;
const agent = new http.Agent({ keepAlive: true });
const log = fs.openSync(options.log, "a");

const told = (side, path, status) => fs.writeSync(log, `${side} ${path} ${status}\n`);
const sleep = (duration) => new Promise((done) => setTimeout(done, duration));

function passed(request) {
  const fields = names.map((name) => [name, request.headers[name.toLowerCase()]]);
  return Object.fromEntries(fields.filter(([, value]) => value));
}

// The headers of one call.
function sent(headers) {
  if (!options.child || !headers.traceparent) return headers;
  const [version, trace, , flags] = headers.traceparent.split("-");
  return { ...headers, traceparent: [version, trace, crypto.randomBytes(8).toString("hex"), flags].join("-") };
}

// The status of the answer, 0 if there was none.
function get(url, headers) {
  return new Promise((done) => {
    const request = http.get(url, { agent, headers }, (response) => {
      response.resume();
      response.on("end", () => done(response.statusCode));
      response.on("error", () => done(0));
    });
    request.on("error", () => done(0));
  });
}

async function call(path, number, headers) {
  const status = await get(options.next[number % options.next.length] + path, sent(headers));
  told("CLIENT", path, status);
  return status;
}

// Makes the calls of a request; the status to answer it with.
async function calls(path, headers) {
  if (!calling) return 200;
  const one = (number) => call(`${path}/${number}`, number, headers);
  let statuses = [];
  switch (options.mode) {
    case "fan":
      statuses = await Promise.all(Array.from({ length: 20 }, (_, number) => one(number)));
      break;
    case "sequence":
      for (let number = 0; number < 3; number++) statuses.push(await one(number));
      break;
    case "retry":
      statuses = [await one(0)];
      if (statuses[0] === 503) statuses = [await one(1)];
      break;
    default:
      statuses = [await one(0)];
  }
  return statuses.every((status) => status > 0 && status < 500) ? 200 : 502;
}

function fails(path) {
  const marked = path.split("/").includes(`fail-${options.name}`);
  return marked && (options.mode !== "retry" || path.endsWith("/0"));
}

const delay = (path) => Number(/^\/slow\/(\d+)\//.exec(path)?.[1] ?? 0);

async function stream(path, headers, response) {
  for (let number = 0; number < 5; number++) {
    response.write(BODY);
    if (calling) await call(`${path}/${number}`, number, headers);
  }
  await sleep(delay(path));
  told("SERVER", path, 200);
  response.end();
}

async function serve(request, response) {
  const path = request.url;
  const headers = passed(request);
  const answer = (status, done) => {
    told("SERVER", path, status);
    response.writeHead(status, { "Content-Length": BODY.length });
    response.end(BODY, done);
  };
  if (fails(path)) return answer(503);
  if (options.mode === "stream") return stream(path, headers, response);
  const late = options.mode === "late";
  const status = late ? 200 : await calls(path, headers);
  if (delay(path)) await sleep(delay(path));
  answer(status, () => {
    if (late && calling) setTimeout(call, 5, `${path}/late`, 0, headers);
  });
}

const server = http.createServer((request, response) => {
  request.resume();
  request.on("end", () => serve(request, response));
});
server.keepAliveTimeout = 0;
server.listen(Number(options.port), "127.0.0.1", 1024, () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
  let number = 0;
  if (calling && options.cron > 0) {
    setInterval(() => call(`/cron/${options.name}/${number++}`, 0, {}), Number(options.cron));
  }
});
process.on("SIGTERM", () => process.exit(0));
