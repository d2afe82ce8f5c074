// lab: a gRPC echo server and client (@grpc/grpc-js, raw byte messages) whose exact logs are used to test a network tracer.
'use strict';
const fs = require('fs');
const crypto = require('crypto');
const { parseArgs } = require('util');
const grpc = require('@grpc/grpc-js');

const KINDS = ['Unary', 'ServerStream', 'ClientStream', 'Bidi'];
const same = (buffer) => buffer;
const service = Object.fromEntries(KINDS.map((kind) => [kind, {
  path: `/lab.Echo/${kind}`,
  requestStream: kind === 'ClientStream' || kind === 'Bidi',
  responseStream: kind === 'ServerStream' || kind === 'Bidi',
  requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same,
}]));

let logFd;
const openLog = (path) => { logFd = fs.openSync(path, 'a'); };
const logLine = (kind, code, a, b) => fs.writeSync(logFd, `lab.Echo/${kind} ${code} ${a} ${b}\n`);

// ---- server ----

// One call at the server: counts its messages, logs it once, and runs a timer that a cancellation stops.
class ServerCall {
  constructor(kind, call) {
    Object.assign(this, { kind, call, received: 0, sent: 0, over: false });
    this.plan = { status: 0, count: 0, size: 0, sleep: 0 };
    call.on('cancelled', () => this.log('cancelled')); // also emitted after the status: log() ignores it then
  }
  // Calls next when the client half-closed: grpc-js shows a cancellation as that too, just before it tells.
  onEnd(next) {
    this.call.on('end', () => setImmediate(next));
  }
  take(message) {
    if (++this.received > 1) return;
    for (const field of message.toString().trim().split(/\s+/)) {
      const [key, value] = field.split('=');
      this.plan[key] = Number(value);
    }
  }
  answer() {
    this.sent++;
    return Buffer.alloc(this.plan.size);
  }
  // Calls next after the sleep that was told, unless the call is over by then.
  sleep(next) {
    if (this.over) return;
    if (this.plan.sleep) this.timer = setTimeout(next, this.plan.sleep);
    else next();
  }
  log(code) {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.timer);
    logLine(this.kind, code, this.received, this.sent);
  }
  // Logs the call and gives the error to answer with, or null; undefined if the call was cancelled before.
  end() {
    if (this.call.cancelled) this.log('cancelled');
    if (this.over) return undefined;
    const { status } = this.plan;
    this.log(status);
    return status ? { code: status, details: `told ${status}` } : null;
  }
  endStream() {
    const error = this.end();
    if (error) this.call.emit('error', error);
    else if (error === null) this.call.end();
  }
  respond(callback) {
    this.sleep(() => {
      const answer = this.plan.status ? null : this.answer();
      const error = this.end();
      if (error !== undefined) callback(error, answer);
    });
  }
}

const handlers = {
  Unary(call, callback) {
    const c = new ServerCall('Unary', call);
    c.take(call.request);
    c.respond(callback);
  },
  ServerStream(call) {
    const c = new ServerCall('ServerStream', call);
    c.take(call.request);
    c.sleep(() => {
      for (let i = 0; i < c.plan.count; i++) call.write(c.answer());
      c.endStream();
    });
  },
  ClientStream(call, callback) {
    const c = new ServerCall('ClientStream', call);
    call.on('data', (message) => c.take(message));
    c.onEnd(() => c.respond(callback));
  },
  Bidi(call) {
    const c = new ServerCall('Bidi', call);
    call.on('data', (message) => {
      c.take(message);
      if (c.received > 1 || !c.plan.sleep) return call.write(c.answer());
      call.pause();
      c.sleep(() => { call.write(c.answer()); call.resume(); });
    });
    c.onEnd(() => c.endStream());
  },
};

function server(path) {
  openLog(path);
  const s = new grpc.Server();
  s.addService(service, handlers);
  s.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    console.log(`listening 127.0.0.1:${port}`);
  });
  for (const name of ['SIGTERM', 'SIGINT']) process.once(name, () => s.forceShutdown());
}

// ---- client ----

const Echo = grpc.makeGenericClientConstructor(service, 'Echo');
const plan = (status, size, sleep) =>
  Buffer.from(`status=${status} count=3 size=${size} sleep=${sleep}`.padEnd(size));
const LETTERS = '!#$&()*+;<>?@XZ[]^{|}~'; // the Huffman code of HPACK does not make these shorter
const text = (n) => Array.from(crypto.randomBytes(n), (byte) => LETTERS[byte % LETTERS.length]).join('');

// One call at the client: promises answered (first answer or end) and ended; messages = how many it sends at most.
class ClientCall {
  constructor(client, kind, metadata, options, message, { messages = 3, cancel = false, hold = false } = {}) {
    Object.assign(this, { kind, sent: 0, received: 0 });
    let answered, ended;
    this.answered = new Promise((resolve) => { answered = resolve; });
    this.ended = new Promise((resolve) => { ended = resolve; });
    const { requestStream, responseStream } = service[kind];
    const args = requestStream ? [metadata, options] : [message, metadata, options];
    if (!responseStream) args.push((error) => { if (!error) this.received++; });
    const call = this.call = client[kind](...args);
    const send = () => { this.sent++; call.write(message); };
    if (!requestStream) this.sent++;
    if (kind === 'ClientStream') {
      for (let i = 0; i < messages; i++) send();
      call.end();
    }
    if (kind === 'Bidi') send();
    let code, closed = !responseStream;
    const settle = () => {
      if (code === undefined || !closed) return;
      logLine(kind, code, this.sent, this.received);
      answered();
      ended();
    };
    call.on('status', (status) => { code = status.code; settle(); });
    if (!responseStream) return;
    call.on('data', () => {
      this.received++;
      answered();
      if (kind !== 'Bidi' || hold) return;
      if (cancel) call.cancel(); // one answer is awaited for each message
      else if (this.sent < messages) send();
      else call.end();
    });
    call.on('error', () => {}); // the status event has it
    call.on('end', () => { closed = true; settle(); }); // all messages were delivered
  }
}

function startCall(client, i, mode, churn) {
  const metadata = new grpc.Metadata();
  if (mode === 'metadata') for (let k = 0; k < 4; k++) metadata.set(`lab-big-${k}`, text(4096));
  if (churn) metadata.set('lab-churn', String(i).padStart(8, '0') + text(192));
  const kind = mode === 'cancel' ? 'Bidi' : KINDS[i % 4];
  const status = mode === 'deadline' || mode === 'cancel' ? 0 : Math.floor(i / 4) % 17;
  const options = mode === 'deadline' ? { deadline: Date.now() + 150 } : {};
  const message = plan(status, 100, mode === 'deadline' ? 5000 : 0);
  return new ClientCall(client, kind, metadata, options, message, { cancel: mode === 'cancel' }).ended;
}

function readLine() {
  return new Promise((resolve) => {
    const stop = () => { process.stdin.destroy(); resolve(); };
    process.stdin.on('data', (chunk) => { if (chunk.includes('\n')) stop(); });
    process.stdin.on('end', stop);
  });
}

async function client(addr, path, args) {
  const { values } = parseArgs({ args, options: {
    calls: { type: 'string' }, concurrency: { type: 'string' }, mode: { type: 'string', default: 'status' },
    churn: { type: 'boolean' }, 'pause-after': { type: 'string' }, held: { type: 'string', default: '0' },
  } });
  const calls = Number(values.calls);
  openLog(path);
  const c = new Echo(addr, grpc.credentials.createInsecure(), {
    'grpc.enable_retries': 0, 'grpc.service_config_disable_resolution': 1, 'grpc.enable_http_proxy': 0,
  });
  const held = [];
  for (let i = 0; i < Number(values.held); i++) {
    held.push(new ClientCall(c, 'Bidi', new grpc.Metadata(), {}, plan(0, 10, 0), { hold: true }));
    await held[i].answered;
  }
  let next = 0;
  const run = (to) => Promise.all(Array.from({ length: Number(values.concurrency) }, async () => {
    while (next < to) await startCall(c, next++, values.mode, values.churn);
  }));
  if (values['pause-after'] !== undefined) {
    await run(Math.min(Number(values['pause-after']), calls));
    console.log('paused');
    await readLine();
  }
  await run(calls);
  for (const call of held) {
    call.call.end();
    await call.ended;
  }
  c.close();
  process.exitCode = 0;
  console.log('done');
}

const [role, ...rest] = process.argv.slice(2);
process.exitCode = 1; // unless done
if (role === 'server' && rest.length === 1) { process.exitCode = 0; server(rest[0]); }
else if (role === 'client' && rest.length >= 2) client(rest[0], rest[1], rest.slice(2));
else console.error('usage: lab.js server LOGFILE | lab.js client ADDR LOGFILE --calls N --concurrency C ...');
