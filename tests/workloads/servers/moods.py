"""A threading HTTP/1.1 server with moods, for the agent's tests: moods.py LOG [PORT] -> prints its port.

/hang/ID waits until the file LOG.go is there, /slow/MS/ID waits so long, /events/N sends N server-sent events,
/status/CODE/ID answers with that status; all else is 200. Logs METHOD PATH STATUS RECEIVED SENT, in bytes of
content, and whatever comes in as x-marker behind it.
"""
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = open(sys.argv[1], "w", buffering=1)
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self):
        received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        words = self.path.split("?")[0].split("/")
        kind, status = words[1], 200
        if kind == "events":
            return self.send_events(int(words[2]))
        if kind == "hang":
            while not os.path.exists(sys.argv[1] + ".go"):
                time.sleep(0.01)
        elif kind == "slow":
            time.sleep(int(words[2]) / 1000)
        elif kind == "status":
            status = int(words[2])
        body = b"" if status == 204 else b"%s %d\n" % (self.path.encode(), len(received))
        sent = b"" if self.command == "HEAD" else body
        self.log_line(status, received, sent)
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if sent:
            self.wfile.write(sent)

    def send_events(self, count):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(count):
            event = b"data: %d\n\n" % number
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.log_line(200, b"", b"")
        self.wfile.write(b"0\r\n\r\n")

    def log_line(self, status, received, sent):
        marker = self.headers.get("X-Marker", "")
        with LOCK:
            line = f"{self.command} {self.path} {status} {len(received)} {len(sent)} {marker}"
            LOG.write(line.rstrip() + "\n")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    allow_reuse_address = True


server = Server(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Handler)
print(f"listening on 127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
