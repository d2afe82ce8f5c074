"""A threading HTTP/1.1 server that logs each request: METHOD PATH STATUS BYTES.

server.py LOG -> prints its port. /ok/ID, /empty/ID (204), /missing/ID (404), /fail/ID (500),
/chunked/ID; a request's body is read and echoed in its length.
"""
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = open(sys.argv[1], "w", buffering=1)
LOCK = threading.Lock()
STATUS = {"ok": 200, "empty": 204, "missing": 404, "fail": 500, "chunked": 200}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        kind = self.path.split("/")[1]
        status = STATUS.get(kind, 404)
        received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b"" if status == 204 else b"%s %d\n" % (self.path.encode(), len(received))
        sent = 0 if self.command == "HEAD" else len(body)
        with LOCK:
            LOG.write(f"{self.command} {self.path} {status} {sent}\n")
        self.send_response(status)
        if kind == "chunked" and self.command != "HEAD":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            half = len(body) // 2
            for part in (body[:half], body[half:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if sent:
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
