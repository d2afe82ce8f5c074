"""What the Python services of a chain share: options, the log, calls to the next service, an HTTP server.

A service that is asked for a path asks the next ones for PATH/0, PATH/1 and so on: the paths tell which
request caused which. It logs `SERVER PATH STATUS` and `CLIENT PATH STATUS` (status 0: there was no answer).
"""
import argparse
import http.client
import os
import secrets
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BODY = b"it has been answered"
CHUNKS = 5
FAN = 20
MODES = ["single", "fan", "sequence", "retry", "late", "stream"]
FAMILIES = {
    "none": [],
    "traceparent": ["traceparent", "tracestate"],
    "b3": ["b3"],
    "b3multi": ["X-B3-TraceId", "X-B3-SpanId", "X-B3-ParentSpanId", "X-B3-Sampled"],
    "uber-trace-id": ["uber-trace-id"],
    "x-request-id": ["x-request-id"],
}
FAMILIES["all"] = sum(FAMILIES.values(), [])


def options(arguments=None, modes=MODES):
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--next", action="append", default=[], help="base URL of a service to call")
    parser.add_argument("--pass", dest="family", choices=FAMILIES, default="none", help="headers to pass on")
    parser.add_argument("--child", action="store_true", help="pass on a new span id with each call")
    parser.add_argument("--log", default=os.devnull)
    parser.add_argument("--mode", choices=modes, default="single")
    parser.add_argument("--cron", type=int, default=0, help="a call every so many ms")
    parser.add_argument("--name", default="", help="fails where a path has fail-NAME")
    return parser.parse_args(arguments)


class Log:
    """Lines, each of them one write: no two of them mix, not of processes either."""

    def __init__(self, path):
        self.file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def line(self, *words):
        os.write(self.file, (" ".join(map(str, words)) + "\n").encode())


class Service:
    def __init__(self, options):
        self.options = options
        self.log = Log(options.log)

    def passed(self, get):
        """The headers of a request, which `get` knows, that its calls have too."""
        return {name: value for name in FAMILIES[self.options.family] if (value := get(name))}

    def fails(self, path):
        """Whether the request is to fail; with retries, only the first attempt."""
        marked = f"fail-{self.options.name}" in path.split("/")
        return marked and (self.options.mode != "retry" or path.endswith("/0"))

    def target(self, number):
        return self.options.next[number % len(self.options.next)]

    def sent(self, headers):
        """The headers of one call."""
        if not self.options.child or "traceparent" not in headers:
            return headers
        version, trace, _, flags = headers["traceparent"].split("-")
        return headers | {"traceparent": f"{version}-{trace}-{secrets.token_hex(8)}-{flags}"}

    def call(self, path, number, headers):
        status = get(self.target(number), path, self.sent(headers))
        self.log.line("CLIENT", path, status)
        return status

    def calls(self, path, headers, parallel=map):
        """Makes the calls of a request; the status to answer it with."""

        def call(number):
            return self.call(f"{path}/{number}", number, headers)

        statuses = []
        if self.options.next:
            match self.options.mode:
                case "fan":
                    statuses = list(parallel(call, range(FAN)))
                case "sequence":
                    statuses = [call(number) for number in range(3)]
                case "retry":
                    statuses = [call(0)]
                    if statuses == [503]:
                        statuses = [call(1)]
                case _:
                    statuses = [call(0)]
        return answer_to(statuses)

    def cron(self):
        number = 0
        while True:
            time.sleep(self.options.cron / 1000)
            self.call(f"/cron/{self.options.name}/{number}", 0, {})
            number += 1

    def start_cron(self):
        if self.options.cron and self.options.next:
            threading.Thread(target=self.cron, daemon=True).start()


def answer_to(statuses):
    return 200 if all(0 < status < 500 for status in statuses) else 502


def delay(path):
    """The seconds to wait before answering /slow/MS/..."""
    match path.split("/"):
        case ["", "slow", duration, _, *_]:
            return int(duration) / 1000
    return 0


KEPT = threading.local()


def get(base, path, headers):
    """The status of the answer, over the connection that this thread keeps to the service."""
    connection = KEPT.__dict__.setdefault(base, http.client.HTTPConnection(urlsplit(base).netloc))
    kept, response = connection.sock is not None, None
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        connection.close()
        # The other end may have closed what was kept.
        return get(base, path, headers) if kept and response is None else 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        service, path = self.server.service, self.path
        headers, mode = service.passed(self.headers.get), service.options.mode
        if service.fails(path):
            return self.answer(503)
        if mode == "stream":
            return self.stream(headers)
        if mode == "late":
            time.sleep(delay(path))
            self.answer(200)
            if service.options.next:
                self.server.later(service.call, f"{path}/late", 0, headers)
            return
        if mode == "fan":
            status = service.calls(path, headers, self.server.parallel)
        else:
            status = self.server.run(service.calls, path, headers)
        time.sleep(delay(path))
        self.answer(status)

    do_POST = do_GET

    def answer(self, status):
        self.server.service.log.line("SERVER", self.path, status)
        self.send_response(status)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def stream(self, headers):
        service = self.server.service
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(CHUNKS):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))
            if service.options.next:
                self.server.run(service.call, f"{self.path}/{number}", number, headers)
        time.sleep(delay(self.path))
        service.log.line("SERVER", self.path, 200)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    """`run(function, *arguments)` makes calls, `parallel` is a map of them, `later` is after the answer."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, service, run, parallel, later):
        super().__init__(("127.0.0.1", service.options.port), Handler)
        self.service, self.run, self.parallel, self.later = service, run, parallel, later


def end_when_told():
    """At once: lines of the log are written when they are made."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def announce(port):
    print(f"listening on 127.0.0.1:{port}", flush=True)
