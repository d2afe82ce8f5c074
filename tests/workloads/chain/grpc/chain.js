// A gRPC service (@grpc/grpc-js, raw byte messages) that calls the next of its kind while it serves a call.
// What calls what is in the names of the methods, whatever the metadata says: X calls X_0.
'use strict';
const fs = require('fs');
const crypto = require('crypto');
const os = require('os');
const { parseArgs } = require('util');
const grpc = require('@grpc/grpc-js');

const PREFIX = 'chain.Echo/';
const ANSWER = Buffer.from('chain.Echo says this');
const FAMILIES = {
  none: [],
  traceparent: ['traceparent', 'tracestate'],
  b3: ['b3'],
  b3multi: ['x-b3-traceid', 'x-b3-spanid', 'x-b3-parentspanid', 'x-b3-sampled'],
  'uber-trace-id': ['uber-trace-id'],
  'x-request-id': ['x-request-id'],
};
FAMILIES.all = Object.values(FAMILIES).flat();
const same = (buffer) => buffer;

const { values: options } = parseArgs({ options: {
  port: { type: 'string', default: '0' }, next: { type: 'string' }, pass: { type: 'string', default: 'none' },
  child: { type: 'boolean' }, log: { type: 'string', default: os.devNull }, name: { type: 'string', default: 'node' },
} });
const keys = FAMILIES[options.pass];
if (!keys) throw new Error(`no such family: ${options.pass}`);

const logFd = fs.openSync(options.log, 'a');
const logLine = (side, method, code) => fs.writeSync(logFd, `${side} ${method} ${code}\n`);

// One connection, on which no call is made twice.
const next = options.next && new grpc.Client(options.next, grpc.credentials.createInsecure(), {
  'grpc.enable_retries': 0, 'grpc.service_config_disable_resolution': 1, 'grpc.enable_http_proxy': 0,
});

// What of the incoming metadata goes on.
function passed(incoming) {
  const outgoing = new grpc.Metadata();
  for (const key of keys) {
    for (let value of incoming.get(key)) {
      if (key === 'traceparent' && options.child) value = own(value);
      outgoing.add(key, value);
    }
  }
  return outgoing;
}

function own(traceparent) {
  const parts = traceparent.split('-');
  if (parts.length === 4) parts[2] = crypto.randomBytes(8).toString('hex');
  return parts.join('-');
}

function serve(call, callback) {
  const method = call.getPath().slice(1);
  const end = (code, details) => {
    logLine('SERVER', method, code);
    if (code === grpc.status.OK) callback(null, ANSWER);
    else callback({ code, details });
  };
  if (method.includes(`fail_${options.name}_`)) return end(grpc.status.INTERNAL, 'told to fail');
  if (!next) return end(grpc.status.OK);
  const onward = `${method}_0`;
  next.makeUnaryRequest(`/${onward}`, same, same, call.request, passed(call.metadata), (error) => {
    logLine('CLIENT', onward, error ? error.code : grpc.status.OK);
    if (error) end(grpc.status.UNAVAILABLE, `the next: ${grpc.status[error.code]}`);
    else end(grpc.status.OK);
  });
}

// grpc-js serves no method that it was not told of, so it is told of each when it looks for its handler: a private
// function of the version that package-lock.json pins, as no public one is asked first.
class Server extends grpc.Server {
  _retrieveHandler(path) {
    if (path.startsWith(`/${PREFIX}`)) this.register(path, serve, same, same, 'unary');
    const handler = super._retrieveHandler(path);
    this.unregister(path); // the name is used once
    return handler;
  }
}

new Server().bindAsync(`127.0.0.1:${options.port}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`listening on 127.0.0.1:${port}`);
});
for (const name of ['SIGTERM', 'SIGINT']) process.once(name, () => process.exit(0)); // the log has all already
