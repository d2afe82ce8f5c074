// As server.py, with Node's http module.
const fs = require("fs");
const http = require("http");

const log = fs.openSync(process.argv[2], "w");
const STATUS = { ok: 200, empty: 204, missing: 404, fail: 500, chunked: 200 };

const server = http.createServer((request, response) => {
  let received = 0;
  request.on("data", (part) => (received += part.length));
  request.on("end", () => {
    const kind = request.url.split("/")[1];
    const status = STATUS[kind] || 404;
    const body = status === 204 ? "" : `${request.url} ${received}\n`;
    const sent = request.method === "HEAD" ? 0 : body.length;
    fs.writeSync(log, `${request.method} ${request.url} ${status} ${sent}\n`);
    response.statusCode = status;
    if (kind === "chunked") {
      const half = body.length >> 1;
      response.write(body.slice(0, half));
      response.end(body.slice(half));
      return;
    }
    if (status !== 204) response.setHeader("Content-Length", body.length);
    response.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(0, "127.0.0.1", 1024, () => console.log(`listening on 127.0.0.1:${server.address().port}`));
